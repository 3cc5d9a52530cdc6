"""What a graph may call: the allow-list, and what each entry takes and gives.

Owns: the list of ATen overloads, the integer functions on shapes, and the rules that
keep a listed op pure. Must not: know JSON or build graphs (loader/graph.py).

What is on the list computes new values, or views within its own arguments, from its
arguments alone. What is not, and never: ops that write to an argument (`add_`, `out=`),
reach outside their own tensors (`as_strided`, `set_`, `resize_`, `from_file`), show
memory nobody wrote (`empty*`), draw random numbers, take a name of something to call,
or give sparse, quantised or nested tensors; nor those that end the process when their
arguments do not fit (`embedding_bag`, `col2im`, `_weight_norm`). tests/test_graph.py
holds the list to that by asking torch's own schemas.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch._ops import OpOverload

from loader.checked import div, gru, lstm, times

_LISTED = """
abs.default acos.default acosh.default asin.default asinh.default atan.default
atanh.default bitwise_not.default ceil.default cos.default cosh.default erf.default
erfc.default erfinv.default exp.default exp2.default expm1.default floor.default
frac.default isfinite.default isinf.default isnan.default lgamma.default log.default
log10.default log1p.default log2.default logical_not.default logit.default
nan_to_num.default neg.default positive.default reciprocal.default round.default
round.decimals rsqrt.default sgn.default sigmoid.default sign.default sin.default
sinc.default sinh.default sqrt.default square.default tan.default tanh.default
trunc.default

add.Tensor add.Scalar sub.Tensor sub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar
div.Tensor_mode div.Scalar_mode rsub.Tensor rsub.Scalar floor_divide.default
floor_divide.Scalar remainder.Tensor remainder.Scalar fmod.Tensor fmod.Scalar
pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar maximum.default minimum.default max.other
min.other atan2.default hypot.default lerp.Scalar lerp.Tensor addcmul.default
addcdiv.default clamp.default clamp.Tensor clamp_min.default clamp_min.Tensor
clamp_max.default clamp_max.Tensor clip.default logaddexp.default
eq.Scalar eq.Tensor ne.Scalar ne.Tensor lt.Scalar lt.Tensor le.Scalar le.Tensor
gt.Scalar gt.Tensor ge.Scalar ge.Tensor isclose.default logical_and.default
logical_or.default logical_xor.default bitwise_and.Tensor bitwise_and.Scalar
bitwise_or.Tensor bitwise_or.Scalar bitwise_xor.Tensor bitwise_xor.Scalar
bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor
bitwise_right_shift.Tensor_Scalar __and__.Tensor __and__.Scalar __or__.Tensor
__or__.Scalar __xor__.Tensor __lshift__.Scalar __rshift__.Scalar

relu.default relu6.default elu.default selu.default celu.default leaky_relu.default
prelu.default hardtanh.default hardswish.default hardsigmoid.default hardshrink.default
softshrink.default silu.default mish.default gelu.default glu.default softplus.default
log_sigmoid.default threshold.default softmax.int log_softmax.int _softmax.default
_log_softmax.default

sum.default sum.dim_IntList mean.default mean.dim prod.default prod.dim_int amax.default
amin.default max.default max.dim min.default min.dim argmax.default argmin.default
any.default any.dim any.dims all.default all.dim all.dims var.default var.dim
var.correction std.default std.dim std.correction var_mean.correction var_mean.dim
std_mean.correction norm.Scalar norm.ScalarOpt_dim linalg_vector_norm.default
logsumexp.default cumsum.default cumprod.default logcumsumexp.default cummax.default
cummin.default aminmax.default median.dim count_nonzero.dim_IntList topk.default
sort.default sort.stable argsort.default argsort.stable kthvalue.default

linear.default matmul.default mm.default bmm.default mv.default dot.default
addmm.default baddbmm.default addbmm.default addmv.default outer.default
bilinear.default einsum.default tensordot.default kron.default cdist.default
cosine_similarity.default pairwise_distance.default linalg_cross.default
scaled_dot_product_attention.default
conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default
conv3d.padding convolution.default conv_transpose1d.default conv_transpose2d.input
conv_transpose3d.input lstm.input gru.input
lstm_cell.default gru_cell.default rnn_tanh_cell.default rnn_relu_cell.default
embedding.default one_hot.default

batch_norm.default layer_norm.default group_norm.default instance_norm.default
rms_norm.default
max_pool1d.default max_pool2d.default max_pool3d.default max_pool1d_with_indices.default
max_pool2d_with_indices.default avg_pool1d.default avg_pool2d.default avg_pool3d.default
adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default
adaptive_max_pool1d.default adaptive_max_pool2d.default
upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec
_upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec upsample_linear1d.vec
upsample_bilinear2d.vec _upsample_bilinear2d_aa.vec upsample_bicubic2d.vec
_upsample_bicubic2d_aa.vec upsample_trilinear3d.vec grid_sampler.default
affine_grid_generator.default pixel_shuffle.default pixel_unshuffle.default
channel_shuffle.default im2col.default pad.default
constant_pad_nd.default reflection_pad1d.default reflection_pad2d.default
replication_pad1d.default replication_pad2d.default replication_pad3d.default

view.default _unsafe_view.default reshape.default reshape_as.default view_as.default
contiguous.default clone.default expand.default expand_as.default broadcast_to.default
broadcast_tensors.default permute.default transpose.int t.default swapaxes.default
swapdims.default movedim.int movedim.intlist numpy_T.default mT.default
unsqueeze.default squeeze.default squeeze.dim squeeze.dims flatten.using_ints
unflatten.int slice.Tensor select.int narrow.default diagonal.default
diag_embed.default unfold.default unbind.int split.Tensor split.sizes
split_with_sizes.default chunk.default tensor_split.sections tensor_split.indices
cat.default concat.default stack.default
hstack.default vstack.default repeat.default tile.default repeat_interleave.self_int
flip.default roll.default rot90.default tril.default triu.default meshgrid.default
meshgrid.indexing copy.default slice_scatter.default select_scatter.default
diagonal_scatter.default fill.Scalar fill.Tensor zero.default

index.Tensor index_select.default index_put.default index_add.default index_copy.default
index_fill.int_Scalar gather.default take_along_dim.default scatter.src scatter.value
scatter_add.default scatter_reduce.two masked_fill.Scalar masked_fill.Tensor
masked_scatter.default where.self where.ScalarSelf where.ScalarOther where.Scalar
bucketize.Tensor searchsorted.Tensor

arange.default arange.start arange.start_step linspace.default eye.default eye.m
zeros.default ones.default full.default scalar_tensor.default zeros_like.default
ones_like.default full_like.default new_zeros.default new_ones.default new_full.default
tril_indices.default triu_indices.default to.dtype type_as.default

fft_fft.default fft_ifft.default fft_fft2.default fft_ifft2.default fft_fftn.default
fft_rfft.default fft_irfft.default fft_rfft2.default fft_irfft2.default
fft_fftshift.default real.default imag.default view_as_real.default
view_as_complex.default complex.default polar.default angle.default
"""

ATEN = frozenset(f"aten.{name}" for name in _LISTED.split())
"""Every ATen overload a graph may call."""

Kind = Literal["tensor", "tensors", "int", "float"]
"""What a value is when the graph runs. "tensors": several, to be taken by getitem."""


@dataclass(frozen=True, slots=True)
class Param:
    """One argument. `type` is TorchScript's name of it, without Optional and List.

    `optional`: null will do. `many`: a list; `gaps`: whose items may be null.
    """

    name: str
    type: str
    optional: bool = False
    many: bool = False
    gaps: bool = False
    keyword_only: bool = False
    required: bool = True


@dataclass(frozen=True, slots=True)
class Signature:
    """How to call an entry of the list. `target`: a method's name, or what to call.

    `gives`: how many values a "tensors" has, None if only running it tells.
    `makes`: it takes no tensor and would choose its own device: the reader tells it.
    """

    target: OpOverload | Callable[..., object] | str
    params: tuple[Param, ...]
    kind: Kind
    gives: int | None = None
    makes: bool = False


def _ints(*names: str) -> tuple[Param, ...]:
    return tuple(Param(name, "int") for name in names)


ON_SHAPES: Mapping[str, Signature] = {
    "size": Signature("size", (Param("self", "Tensor"), *_ints("dim")), "int"),
    "getitem": Signature(
        operator.getitem, (Param("self", "values"), *_ints("index")), "tensor"
    ),
    "int.add": Signature(operator.add, _ints("left", "right"), "int"),
    "int.sub": Signature(operator.sub, _ints("left", "right"), "int"),
    "int.mul": Signature(times, _ints("left", "right"), "int"),
    "int.floordiv": Signature(operator.floordiv, _ints("left", "right"), "int"),
    "int.mod": Signature(operator.mod, _ints("left", "right"), "int"),
    "int.neg": Signature(operator.neg, _ints("value"), "int"),
    "int.max": Signature(max, _ints("left", "right"), "int"),
    "int.min": Signature(min, _ints("left", "right"), "int"),
    "float.div": Signature(operator.truediv, _ints("left", "right"), "float"),
}
"""Integer arithmetic on shapes, and taking one of several results."""

CHECKED: Mapping[str, Callable[..., object]] = {
    "aten.div.Tensor_mode": div,
    "aten.div.Scalar_mode": div,
    "aten.lstm.input": lstm,
    "aten.gru.input": gru,
}
"""Called instead of the op itself, which would believe what it is told."""

PLACED = frozenset({"device", "layout", "pin_memory"})
"""Arguments a graph never gives: its device is where the model runs, all is dense."""

NUMBER_FOR_TENSOR = frozenset({"other", "exponent"})
"""Tensor arguments that take a number too, as torch itself does."""

STRINGS: Mapping[str, re.Pattern[str]] = {
    "approximate": re.compile("none|tanh"),
    "rounding_mode": re.compile("floor|trunc"),
    "mode": re.compile("constant|reflect|replicate|circular"),
    "padding": re.compile("same|valid"),
    "indexing": re.compile("ij|xy"),
    "reduce": re.compile("sum|prod|mean|amax|amin"),
    "side": re.compile("left|right"),
    "norm": re.compile("backward|forward|ortho"),
    "equation": re.compile(r"[A-Za-z.,\- >]{1,200}"),
}
"""The only strings there are, by the argument that takes them."""

FIXED: Mapping[tuple[str, str], object] = {
    ("aten.batch_norm.default", "training"): False,
    ("aten.scaled_dot_product_attention.default", "dropout_p"): 0,
    ("aten.lstm.input", "train"): False,
    ("aten.gru.input", "train"): False,
    # With running statistics it would write to them.
    ("aten.instance_norm.default", "running_mean"): None,
    ("aten.instance_norm.default", "running_var"): None,
}
"""Arguments with one permitted value: any other would draw numbers or write weights."""

_PLAIN = re.compile(r"(Optional\[)?(List\[)?(Optional\[)?(\w+)\]*")


@lru_cache(maxsize=1024)
def signature(name: str) -> Signature | None:
    """How to call `name`, None if it is not on the list (or this torch lacks it)."""
    if name in ON_SHAPES:
        return ON_SHAPES[name]
    if name not in ATEN:
        return None
    _, packet, overload = name.split(".")
    op = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if not isinstance(op, OpOverload):
        return None
    schema = op._schema
    params = tuple(
        _param(argument) for argument in schema.arguments if argument.name not in PLACED
    )
    placed = any(argument.name == "device" for argument in schema.arguments)
    target = CHECKED.get(name, op)
    makes = placed and not any(param.type == "Tensor" for param in params)
    if len(schema.returns) == 1 and str(schema.returns[0].real_type) == "Tensor":
        return Signature(target, params, "tensor", makes=makes)
    gives = len(schema.returns) if len(schema.returns) > 1 else None
    return Signature(target, params, "tensors", gives)


def _param(argument: torch._C.Argument) -> Param:
    type_ = str(argument.real_type)
    plain = _PLAIN.fullmatch(type_)
    if plain is None:
        # Nothing on the list has such an argument; no value will be found to fit it.
        return Param(argument.name, type_)
    return Param(
        name=argument.name,
        type=plain[4],
        optional=plain[1] is not None,
        many=plain[2] is not None,
        gaps=plain[3] is not None,
        keyword_only=argument.kwarg_only,
        required=not argument.has_default_value(),
    )
