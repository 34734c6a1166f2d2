"""Methods that find objects in unlabelled pictures, given features that were learned without labels."""

from __future__ import annotations

from selftaught.registry import Entry

METHODS: dict[str, Entry] = {
    "lost": Entry(
        "selftaught.segmentation.lost:Lost",
        "grows a box from the patch that resembles the fewest others; no training",
    ),
    "tokencut": Entry(
        "selftaught.segmentation.tokencut:TokenCut",
        "normalised cut of the patch graph into object and background; no training",
    ),
    "tokencut_video": Entry(
        "selftaught.segmentation.tokencut_video:TokenCutVideo",
        "normalised cut of all patches of a clip, joined by looks and by motion; no training",
    ),
    "spectral": Entry(
        "selftaught.segmentation.spectral:Spectral",
        "Laplacian eigenvectors of feature and colour affinities; no training",
    ),
    "selfmask": Entry(
        "selftaught.segmentation.selfmask:SelfMask",
        "a small network trained on the masks of the cuts; sharp and fast",
    ),
    "move": Entry(
        "selftaught.segmentation.move:Move",
        "what can be moved and still looks real is an object; experimental: `small` does not beat its start",
    ),
    "move_video": Entry(
        "selftaught.segmentation.move_video:MoveVideo",
        "MOVE on clips: what the ground of other frames does not explain is an object; experimental: below the plain difference",
    ),
    "cutler": Entry(
        "selftaught.segmentation.cutler:Cutler",
        "MaskCut: normalised cuts again and again, several objects per picture; no training",
    ),
    "freesolo": Entry(
        "selftaught.segmentation.freesolo:FreeSolo",
        "free masks: patches as queries, the clearest answers are the objects; no training",
    ),
    "cad": Entry(
        "selftaught.segmentation.cad:Cad",
        "a class-agnostic detector trained on the boxes of any run that finds objects",
    ),
    "solo": Entry(
        "selftaught.segmentation.solo:Solo",
        "FreeSOLO's second half: a network that learns sharp masks, told apart, from the coarse masks of any run",
    ),
}
