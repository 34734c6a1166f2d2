"""Scores shared by all rooms: every number with its interval, its count, its direction and the baselines measured
beside it.

`score` (the Score itself, intervals), `features` (kNN, linear probe, ranks, pixel and HOG baselines), `clusters` (NMI,
ARI, mask overlap), `masks` and `saliency` (IoU, accuracy, max F, MAE, S, E, weighted F), `boxes` (CorLoc, average
precision), `baselines` (masks that need no learning). Nothing here knows a method; importing this package imports
nothing heavy.
"""
