"""Worlds of solid objects: drawn heads, cars and chairs, or a folder of mesh files, each seen once from a viewpoint that is known.

`heads`, `cars` and `chairs` draw one object from a random state; `files` reads meshes; `scenes` chooses viewpoint, light and
background and renders; `writing` is what `selftaught data make` calls.
"""
