"""Checkpoint -> ONNX -> quantized -> bundle.

main        the command
graph       a checkpoint's encoders as ONNX files that give what torch gives
quantize    int8, and what it costs
decision    the numbers of the decision between a label and unknown
speech      all of it: the bundle `speech`
senses      all of it: the bundles `audio` and `image`
projection  heads of `edgealign train projection`, folded into the graphs of their bundles

Encoders that edgealign did not train:

import_onnx     an ONNX model, which foreign reads and wraps
huggingface     a folder of a transformers model: huggingface_front_ends is what its preprocessing computes,
                huggingface_graph makes front end, model and head one graph
front_ends, foreign_bundle   what both share: front ends; background bank, decision and bundle

int8 encoders for any bundle:

quantize_bundle  a bundle with int8 encoders that passed the gates; int8 makes them, sensitivity chooses their layers
"""
