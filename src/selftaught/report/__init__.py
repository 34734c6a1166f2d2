"""What a run shows and gives away: pictures, plots, one self-contained web page, and exports for other tools.

This package knows capabilities and plain data (arrays, numbers, words), never a method.
"""
