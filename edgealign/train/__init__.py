"""Training: the only part of edgealign that imports torch.

main        the command; options   what its commands share
front_end   the front end and the window policy that encoders are trained for
ops         the formulas of the core as torch operators
losses      alignment and classification losses
meta        Reptile, and adaptation on a copy
checkpoints what is kept of a run

The bundle `speech`:

words       word lists and phonemes: what is said
synthesis   speech synthesizers: how it is said; held_out_clips   what training never hears
corpus      words and recordings rendered once into a cache of power spectra
augment     one batch of spectra made to sound as if recorded in the field; batches   what a batch is made of
encoders    the two encoders and the classifier that they share
text_to_speech   the training; config   what it is told; validation   what its checkpoint is chosen by
distillation     a student of finished speech encoders; spelling   the text encoder once more; updates   their loop
last_maps        the last maps of both, fitted anew

The bundles `audio` and `image`, their "senses":

sounds, made_sounds, pictures   what they are trained on; sense_data   all of it, by role
sense_encoders   the encoders; senses   their training
starts, source_networks   words and pictures that a class can start from
sense_commands   the commands

The method as research, on four small tasks:

packs, published, pairs_table   loaders; listing, features, paired   what they become
networks    small encoders of text, pictures and sounds
methods     CroMA, its baselines and ablations as lists of stages
tasks       source tasks, alignment tasks, and those of the baselines
loop        runs the stages of a method; processes   several of them
evaluation  episodes on new labels, label noise, retrieval
research, research_commands   tasks, tables and commands
projection, projection_command   heads that align two frozen bundles, by the same loop
"""
