"""The command line, installed as edgealign.cli."""
