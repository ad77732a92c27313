"""Checkpoint -> ONNX -> quantized -> bundle.

graph       a checkpoint's encoders as ONNX files that give what torch gives
quantize    int8, and what it costs
decision    the background bank and the numbers of the decision between a label and unknown
huggingface folders of transformers models: with huggingface_front_ends (what their preprocessing computes) and
            huggingface_graph (front end, model and head as one graph)
speech      all of it: the bundle `speech`
"""
