"""Local Motion Analysis of GLASS: what an agent does beyond moving, as one of K codes, and the network that draws the next foreground.

Davtyan and Favaro, "Controllable Video Generation through Global and Local Motion Dynamics", ECCV 2022, section 3.2. Everything that
comes in here has been detached from GMA: with gradients LMA would move mask pixels to make its own task easier.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selftaught.control.glass_figure import corners, cut, paste
from selftaught.control.glass_guess import FirstGuess
from selftaught.control.glass_slow import SlowCodes
from selftaught.nets.quantiser import Quantised, Quantiser
from selftaught.nets.video_blocks import ConvLSTM, ModConv, Norm, ResBlock, UpBlock, norm_layer, shift_layer

State = tuple[tuple[Tensor, Tensor], ...]


class StateNet(nn.Module):
    """E: a foreground to state channels and one channel of attention, at 1/8 of the size (1/4 where pixels are folded)."""

    def __init__(self, widths: tuple[int, int, int], compressed: int, fold: int, norm: Norm):
        super().__init__()
        a, b, c = widths
        self.fold = fold
        self.stem = nn.Conv2d(3 * fold**2, a, 3, padding=1)
        self.stem_norm = norm_layer(norm, a)
        # Where pixels are folded the halving comes first: the blocks before it would cost as much as all the others.
        first, last = (2, 1) if fold > 1 else (1, 2)
        self.body = nn.Sequential(
            ResBlock(a, a, first, norm), ResBlock(a, b, last, norm), ResBlock(b, b, norm=norm), ResBlock(b, c, last, norm),
        )  # fmt: skip
        self.out = nn.Conv2d(c, c + 1, 3, padding=1)
        self.compress = nn.Conv2d(c, compressed, 1)
        self.down = 1 if fold > 1 else 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, C + 1, h, w): the state, and attention as the last channel."""
        y = self.stem(F.pixel_unshuffle(x, self.fold))
        y = F.avg_pool2d(y, self.down) if self.down > 1 else y
        return self.out(self.body(F.leaky_relu(self.stem_norm(y), 0.2)))

    def compressed(self, y: Tensor) -> Tensor:
        """The part of the state that the dynamics see."""
        return self.compress(y[:, :-1])

    @staticmethod
    def attended(y: Tensor) -> Tensor:
        """State times attention, which the action is read from."""
        return y[:, :-1] * y[:, -1:]


class ActionNet(nn.Module):
    """A: the states of the shifted foreground and of the next one to the direction of change, and that to the vector that is quantised."""

    def __init__(self, state: int, width: int, out: int, bilinear: int, direction: Literal["bilinear", "plain"], norm: Norm):
        super().__init__()
        self.reader = nn.Sequential(ResBlock(state, 2 * width, 2, norm), ResBlock(2 * width, width, norm=norm))
        self.direction = direction
        n = bilinear if direction == "bilinear" else 0
        sizes = [width] + [2 * width] * (n - 1) + [width]
        self.turns = nn.ModuleList([nn.Linear(width, width) for _ in range(n)])
        self.bilinear = nn.ModuleList([nn.Bilinear(width, a, b) for a, b in zip(sizes[:n], sizes[1 : n + 1], strict=True)])
        self.norms = nn.ModuleList([nn.LayerNorm(b) for b in sizes[1:n]])
        self.head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.LeakyReLU(0.2), nn.Linear(2 * width, width), nn.LayerNorm(width),
            nn.LeakyReLU(0.2), nn.Linear(width, out),
        )  # fmt: skip

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """States times attention (N, C, h, w) of the shifted frame t and of frame t + 1 to (N, out).

        bilinear: y_0 = v, y_{k+1} = act(norm(Bilinear_k(Linear_k(u), y_k))), direction = y_n - u; plain: direction = v - u.
        """
        with torch.autocast(before.device.type, enabled=False):  # autocast knows no bilinear layers, and they are small
            return self.head(self.change(before.float(), after.float()))

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """The direction (N, width) of change."""
        u, v = self.reader(torch.cat([before, after])).mean((2, 3)).chunk(2)
        y = v
        for k, (turn, bilinear) in enumerate(zip(self.turns, self.bilinear, strict=True)):
            y = bilinear(turn(u), y)
            if k < len(self.norms):
                y = F.leaky_relu(self.norms[k](y), 0.2)
        return y - u


class Dynamics(nn.Module):
    """R: three convolutional LSTMs, each with a block that is no recurrence; the shift enters at the first, the code at the others."""

    def __init__(self, state: int, hidden: int, code: int, conditioned: Literal["modulated", "plain"], joint: bool, norm: Norm):
        super().__init__()
        cond, h = 8, hidden
        self.joint, self.modulated = joint, conditioned == "modulated"
        self.shift_in = nn.Linear(2 + (code if joint else 0), cond)
        self.code_in = nn.Linear(code + (2 if joint else 0), cond)
        self.lstm = nn.ModuleList([ConvLSTM(state + cond, h), ConvLSTM(2 * h + cond, 2 * h), ConvLSTM(h + cond, h)])
        self.norms = nn.ModuleList([norm_layer(norm, h), norm_layer(norm, 2 * h), norm_layer(norm, h)])
        if self.modulated:
            self.down, self.last = ModConv(h, 2 * h, cond, 2, norm), ModConv(h, h, cond, 1, norm)
        else:
            self.down, self.last = ResBlock(h + cond, 2 * h, 2, norm), ResBlock(h + cond, h, 1, norm)  # type: ignore[assignment]
        self.up = UpBlock(2 * h + cond, h, norm, late=True)

    def start(self, batch: int, size: tuple[int, int]) -> State:
        """The state before the first frame, for maps of `size`."""
        half = (size[0] // 2, size[1] // 2)
        return tuple(cell.start(batch, *s) for cell, s in zip(self.lstm, (size, half, size), strict=True))  # type: ignore[operator]

    def forward(self, x: Tensor, shift: Tensor, code: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: compressed state (B, s, h, w), shift (B, 2), code vector (B, D) to features (B, hidden, h, w) and the new state."""
        both = torch.cat([shift, code], 1)
        a = self.shift_in(both if self.joint else shift)
        b = self.code_in(torch.cat([code, shift], 1) if self.joint else code)
        one = self.lstm[0](torch.cat([x, _tile(a, x)], 1), state[0])
        y = self._conditioned(self.down, self.norms[0](one[0]), a)
        two = self.lstm[1](torch.cat([y, _tile(b, y)], 1), state[1])
        y = self.norms[1](two[0])
        y = self.up(torch.cat([y, _tile(b, y)], 1), x.shape[2:])
        three = self.lstm[2](torch.cat([y, _tile(b, y)], 1), state[2])
        return self._conditioned(self.last, self.norms[2](three[0]), b), (one, two, three)

    def _conditioned(self, block: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
        return block(x, condition) if self.modulated else block(torch.cat([x, _tile(condition, x)], 1))


class Drawn(NamedTuple):
    """A drawn foreground, in the whole frame or in a square around the agent, and the whole frame that it makes."""

    scales: list[Tensor]
    """(B, 3, h, w) in [-1, 1] at full, half (and quarter) size."""
    mask: Tensor
    """(B, 1, h, w) in [0, 1]."""
    whole: Tensor
    """(B, 4, H, W): the next canvas: foreground and mask."""
    moved: Tensor | None = None
    """(B, 4, h, w): what was drawn on: the last canvas after its shift."""
    corner: Tensor | None = None
    """(B, 2): where in the frame the square begins; none where the whole frame is drawn."""

    def first(self, count: int) -> Drawn:
        """The first ones of the batch."""
        moved, corner = (None if x is None else x[:count] for x in (self.moved, self.corner))
        return Drawn([s[:count] for s in self.scales], self.mask[:count], self.whole[:count], moved, corner)


class Renderer(nn.Module):
    """Features to a foreground at every scale and a mask; the last doubling is a fold of channels where pixels are folded."""

    def __init__(self, hidden: int, widths: tuple[int, int, int], fold: int, norm: Norm, residual: bool, guessed: bool = False):
        super().__init__()
        self.fold, self.residual = fold, residual
        a, b, c = widths
        if fold == 1:
            self.stages = nn.ModuleList([
                nn.ModuleList([UpBlock(hidden, a, norm), ResBlock(a, a, norm=norm)]),
                nn.ModuleList([UpBlock(a, b, norm), ResBlock(b, b, norm=norm)]), nn.ModuleList([UpBlock(b, c, norm), nn.Identity()]),
            ])  # fmt: skip
            self.heads = nn.ModuleList([nn.Conv2d(w, 3, 3, padding=1) for w in (a, b)])
            last = (c, 4, 7)
        else:
            self.stages = nn.ModuleList([
                nn.ModuleList([ResBlock(hidden, a, norm=norm), nn.Identity()]),
                nn.ModuleList([UpBlock(a, b, norm), ResBlock(b, c, norm=norm)]),
            ])  # fmt: skip
            self.heads = nn.ModuleList([nn.Conv2d(a, 3, 3, padding=1)])
            last = (c, 4 * fold**2, 3)
        if not residual:
            self.final = nn.Conv2d(*last, padding=last[2] // 2)
        else:
            drawing = nn.Conv2d(c, 5 * fold**2, 3, padding=1)
            assert drawing.bias is not None
            drawing.bias.data[-(fold**2) :] = 0.0 if guessed else -1.5  # gates begin nearly closed: the shift alone
            self.change = nn.Sequential(nn.Conv2d(c + (8 if guessed else 4) * fold**2, c, 3, padding=1), nn.LeakyReLU(0.2), drawing)

    def forward(self, x: Tensor, moved: Tensor | None = None, guess: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """(B, hidden, h, w) to the foreground at every scale, coarse ones last, and the mask.

        With `residual` the last foreground and its mask after the shift, `moved` (B, 4, H, W), are the canvas: a gate says where
        something new is drawn, drawn = (1 - gate) moved + gate new. What the shift alone explains need not be remembered by the state.
        With a `guess` (B, 4, H, W) of how the agent looks, new = guess + change.
        """
        coarse: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
            if i < len(self.heads):
                coarse.append(torch.tanh(self.heads[i](x)).float())
        if self.residual:
            assert moved is not None
            known = moved if guess is None else torch.cat([moved, guess], 1)
            y = F.pixel_shuffle(self.change(torch.cat([x, F.pixel_unshuffle(known, self.fold)], 1)), self.fold).float()
            gate = torch.sigmoid(y[:, 4:])
            if guess is None:
                new = torch.cat([torch.tanh(y[:, :3]), torch.sigmoid(y[:, 3:4])], 1)
            else:
                new = torch.cat([(guess[:, :3] + y[:, :3]).clamp(-1, 1), (guess[:, 3:] + y[:, 3:4]).clamp(0, 1)], 1)
            y = (1 - gate) * moved + gate * new
            return [y[:, :3], *reversed(coarse)], y[:, 3:]
        y = torch.tanh(F.pixel_shuffle(self.final(x), self.fold)).float()
        return [y[:, :3], *reversed(coarse)], 0.5 * (y[:, 3:] + 1)


class Memory(NamedTuple):
    """What the drawing remembers: the states of the dynamics, and who the agent is, (B, P), which is read once, for the first guess."""

    cells: State
    who: Tensor

    def first(self, count: int) -> Memory:
        """The first ones of the batch."""
        return Memory(tuple((h[:count], c[:count]) for h, c in self.cells), self.who[:count])


class LMA(nn.Module):
    """States, actions, dynamics and drawing of foregrounds."""

    def __init__(
        self, state: StateNet, action: ActionNet | None, quantiser: Quantiser | None, slow: SlowCodes | None, dynamics: Dynamics,
        renderer: Renderer, guess: FirstGuess | None, side: int,
    ):  # fmt: skip
        super().__init__()
        self.guess, self.side = guess, side
        self.state, self.action, self.quantiser, self.slow = state, action, quantiser, slow
        self.dynamics, self.renderer = dynamics, renderer

    @property
    def codes(self) -> Quantiser | SlowCodes:
        """Whatever keeps the codes."""
        kept = self.quantiser if self.slow is None else self.slow
        assert kept is not None
        return kept

    def see(self, canvas: Tensor) -> Tensor:
        """E of canvases (N, 4, H, W): foregrounds and masks; of the square around the agent where that is drawn."""
        return self.state(cut(canvas, corners(canvas[:, 3:], self.side), self.side)[:, :3] if self.side else canvas[:, :3])

    def begin(self, state: Tensor, canvas: Tensor) -> Memory:
        """The memory before the first canvas (B, 4, H, W), and `see` of it."""
        who = canvas.new_zeros(len(canvas), 0)
        if self.guess is not None:
            who = self.guess.who(cut(canvas, corners(canvas[:, 3:], self.side), self.side))
        return Memory(self.dynamics.start(len(state), (state.shape[-2], state.shape[-1])), who)

    def step(self, state: Tensor, canvas: Tensor, shift: Tensor, code: Tensor, memory: Memory | None) -> tuple[Drawn, Memory]:
        """One step: a canvas (B, 4, H, W) and `see` of it to the next one, after `shift` (B, 2) and by the vector of a code."""
        moved = shift_layer(canvas, shift, "zeros") if self.renderer.residual else None
        square, corner = moved, None
        if self.side and moved is not None:
            corner = corners(moved[:, 3:], self.side)
            square = cut(moved, corner, self.side)
        memory = memory or self.begin(state, canvas)
        guess = None
        if self.guess is not None and square is not None:
            K = len(self.guess.maps)
            guess, code = self.guess(memory.who, code[:, -K:], square), code[:, :-K]
        # A shift of one is half a frame: brought to about 1 for what agents do in one step.
        y, cells = self.dynamics(self.state.compressed(state), 8 * shift, code, memory.cells)
        scales, mask = self.renderer(y, square, guess)
        whole = torch.cat([scales[0], mask], 1)
        if corner is not None and moved is not None:
            whole = paste(whole, corner, moved)
        return Drawn(scales, mask, whole, square, corner), Memory(cells, memory.who)

    def vectors(self, codes: Tensor) -> Tensor:
        """What the drawing is told of codes (...): their vectors, and which they are where there is a guess for each."""
        found = self.codes.look_up(codes)
        return found if self.guess is None else torch.cat([found, F.one_hot(codes, len(self.guess.maps)).to(found)], -1)

    def code(
        self, moved: Tensor, after: Tensor, masks: Tensor, state: Tensor | None = None, temperature: float = 1.0, learn: bool = False
    ) -> Quantised:
        """Codes of N changes: foregrounds (N, 3, H, W) after their shifts and of the next frame, its mask (N, 1, H, W), maybe E of it."""
        if self.slow is not None:
            codes = self.slow(self.slow.seen(after, masks))
            if learn:
                self.slow.count(codes)
            return Quantised(codes, self.vectors(codes), after.new_zeros(()))
        assert self.action is not None and self.quantiser is not None
        attended, state = self.state.attended, self.state(after) if state is None else state
        return self.quantiser(self.action(attended(self.state(moved)), attended(state)), temperature, learn=learn)


class LocalLoss(NamedTuple):
    """What `lma_losses` compares: frames 1 to T - 1, as (B, T - 1, C, H, W)."""

    real: Tensor
    """Foregrounds f_{t+1}."""
    before: Tensor
    """Foregrounds f_t."""
    moved: Tensor
    """Foregrounds f~_{t+1}: f_t after its shift."""
    masks: Tensor
    """Masks m_{t+1}."""
    drawn: list[Tensor]
    """Foregrounds f^_{t+1} at every scale, the full one first."""
    drawn_before: Tensor
    """What the network was shown in place of f_t: the real one or its own."""
    drawn_masks: Tensor
    states: tuple[Tensor, Tensor]
    """E(f_{t+1}) and E(f^_{t+1})."""


def compared(
    real: Tensor, before: Tensor, moved: Tensor, drawn: list[Drawn], seen: Tensor, states: tuple[Tensor, Tensor], shown: int
) -> LocalLoss:
    """What the losses compare, in the squares that were drawn or in whole frames, of canvases (B, T - 1, 4, H, W); `moved` has no masks."""
    scales = [torch.stack(s, 1) for s in zip(*(d.scales for d in drawn), strict=True)]
    corner = [d.corner for d in drawn if d.corner is not None]
    if corner:
        side, sizes = scales[0].shape[-1], (4, 4, 4, 3)
        whole = torch.cat([real, before, seen, moved], 2).flatten(0, 1)
        squares = cut(whole, torch.stack(corner, 1).flatten(0, 1), side).unflatten(0, real.shape[:2])
        real, before, seen, moved = squares.split(sizes, 2)
    # What was shown need not be what was there before: then the shown one after its shift is what the shift explains.
    known = [d.moved[:, :3] for d in drawn[:shown] if d.moved is not None]
    if known:
        moved = torch.cat([torch.stack(known, 1), moved[:, len(known) :]], 1)
    drawn_masks = torch.stack([d.mask for d in drawn], 1)
    return LocalLoss(real[:, :, :3], before[:, :, :3], moved, real[:, :, 3:], scales, seen[:, :, :3], drawn_masks, states)


def lma_losses(x: LocalLoss) -> dict[str, Tensor]:
    """The losses of LMA without weights, perceptual and quantisation terms (GLASS, section 3.2; formulas from the released code).

    global_motion = mean over scales of mean w |f_{t+1} - f^_{t+1}|,  w = sum_c |f_{t+1} - f_t| + |f^_{t+1} - f^_t|
    local_motion  = the same with                                     w = sum_c |f_{t+1} - f~_{t+1}| + |f_{t+1} - f^_{t+1}|
    state         = mean |sg[E(f_{t+1})] - E(f^_{t+1})|
    mask          = mean |m^_{t+1} - sg[m_{t+1}]|
    Weights have no gradient; targets and weights are brought to the smaller scales by bilinear interpolation.
    """
    full = x.drawn[0]
    weights = {
        "global_motion": ((x.real - x.before).abs() + (full - x.drawn_before).abs()).sum(2, keepdim=True).detach(),
        "local_motion": ((x.real - x.moved).abs() + (x.real - full).abs()).sum(2, keepdim=True).detach(),
    }
    losses = {name: full.new_zeros(()) for name in weights}
    for drawn in x.drawn:
        size = drawn.shape[-2:]
        real = _smaller(x.real, size)
        for name, w in weights.items():
            losses[name] = losses[name] + (_smaller(w, size) * (real - drawn).abs()).mean() / len(x.drawn)
    losses["state"] = (x.states[0].detach() - x.states[1]).abs().mean()
    losses["mask"] = (x.drawn_masks - x.masks.detach()).abs().mean()
    return losses


def _smaller(x: Tensor, size: torch.Size) -> Tensor:
    """(B, T, C, H, W) at another size."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x.flatten(0, 1), size=tuple(size), mode="bilinear", align_corners=False).unflatten(0, x.shape[:2])


def _tile(vector: Tensor, like: Tensor) -> Tensor:
    return vector[..., None, None].expand(-1, -1, *like.shape[2:])
