"""Shared network parts: backbones, small transformers, decoders and discriminators; knows no method."""
