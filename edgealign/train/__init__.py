"""Training: the only part of edgealign that imports torch.

words       word lists and phonemes: what is said
synthesis   speech synthesizers: how it is said
corpus      words and recordings rendered once into a cache of power spectra
augment     one batch of spectra made to sound as if recorded in the field
encoders    the two encoders and the classifier that they share
losses      alignment and classification losses
meta        source tasks, alignment tasks, Reptile
text_to_speech   the command that trains the shipped bundle

The method as research, on four small tasks:

packs, published, pairs_table   loaders; listing, features, paired   what they become
networks    small encoders of text, pictures and sounds
methods     CroMA, its baselines and ablations as lists of stages
tasks       source tasks, alignment tasks, and those of the baselines
loop        runs the stages of a method; processes   several of them
evaluation  episodes on new labels, label noise, retrieval
research, research_commands   tasks, tables and commands
"""
