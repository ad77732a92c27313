"""Measurements of edgealign: few-shot accuracy, latency and footprint. JSON rows in, Markdown tables out."""
