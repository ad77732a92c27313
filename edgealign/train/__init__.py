"""Training: the only part of edgealign that imports torch.

words       word lists and phonemes: what is said
synthesis   speech synthesizers: how it is said
corpus      words and recordings rendered once into a cache of power spectra
augment     one batch of spectra made to sound as if recorded in the field
encoders    the two encoders and the classifier that they share
losses      alignment and classification losses
meta        source tasks, alignment tasks, Reptile
text_to_speech   the command that trains the shipped bundle
"""
