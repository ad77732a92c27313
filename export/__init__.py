"""Checkpoint -> ONNX -> quantized -> bundle.

graph       a checkpoint's encoders as ONNX files that give what torch gives
quantize    int8, and what it costs
decision    the background bank and the numbers of the decision between a label and unknown
speech      all of it: the bundle `speech`
"""
