"""The hash of a tensor: of its type, shape and every bit, and of nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entangle.errors import EntangleError
from entangle.storage.tensors import tensor_hash

DTYPES = [
    *(
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128),
]


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@given(st.sampled_from(DTYPES), st.lists(st.integers(1, 4), max_size=3), st.data())
def test_one_bit_of_any_type_is_another_tensor(dtype, shape, data):
    octets = torch.ones(max(1, torch.Size(shape).numel()) * dtype.itemsize, dtype=torch.uint8)
    before = tensor_hash(octets.view(dtype).reshape(shape))
    octets[data.draw(st.integers(0, len(octets) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert tensor_hash(octets.view(dtype).reshape(shape)) != before


@given(st.permutations(range(3)), st.integers(0, 2))
def test_strides_and_sharing_do_not_matter(order, start):
    x = torch.arange(2.0 * 3 * 4).reshape(2, 3, 4).permute(order)
    assert tensor_hash(x) == tensor_hash(x.contiguous()) == tensor_hash(x.clone().requires_grad_())
    rows = torch.arange(12.0).reshape(4, 3)
    assert tensor_hash(rows[start : start + 2]) == tensor_hash(rows[start : start + 2].clone())
    assert tensor_hash(rows[:, ::2]) == tensor_hash(rows[:, ::2].contiguous())
    assert tensor_hash(rows[:1].expand(3, 3)) == tensor_hash(rows[:1].repeat(3, 1))
    assert tensor_hash(torch.nn.Parameter(rows)) == tensor_hash(rows)


def test_lazy_conjugates_are_the_numbers_they_stand_for():
    z = torch.tensor([1 + 2j, 3 - 1j])
    assert tensor_hash(z.conj()) == tensor_hash(z.conj().resolve_conj()) != tensor_hash(z)
    assert tensor_hash(z.conj().imag) == tensor_hash(-z.imag)


def kinds():
    x = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    return {
        "dense": x,
        "transposed": x.T,
        "flat": x.flatten(),
        "double": x.double(),
        "empty": x[:0],
        "empty of another shape": x[:, :0],
        "one number": x[0, 0],
        "coo": x.to_sparse(),
        "other coo": (2 * x).to_sparse(),
        "larger coo": torch.sparse_coo_tensor(x.to_sparse().indices(), x.to_sparse().values(), (3, 2)),
        "csr": x.to_sparse_csr(),
        "csc": x.to_sparse_csc(),
        "jagged": torch.nested.nested_tensor([x[0], x[1, :1]], layout=torch.jagged),
        "other jagged": torch.nested.nested_tensor([x[0, :1], x.flatten()[1:3]], layout=torch.jagged),
        "quantised": torch.quantize_per_tensor(x, 0.5, 0, torch.qint8),
        "quantised with other scales": torch.quantize_per_tensor(2 * x, 1.0, 0, torch.qint8),
        "quantised by row": torch.quantize_per_channel(x, torch.ones(2), torch.zeros(2).long(), 0, torch.qint8),
    }


@pytest.mark.filterwarnings("ignore")
def test_tensors_of_every_layout_are_known_by_their_content():
    hashes = {name: tensor_hash(x) for name, x in kinds().items()}
    assert hashes == {name: tensor_hash(x.clone()) for name, x in kinds().items()}
    assert len(set(hashes.values())) == len(hashes)


def test_a_tensor_sharded_over_processes_is_gathered(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        x = torch.arange(6.0)
        assert tensor_hash(distribute_tensor(x, init_device_mesh("cpu", (1,)), [Shard(0)])) == tensor_hash(x)
    finally:
        dist.destroy_process_group()


def test_a_tensor_without_numbers_is_refused():
    with pytest.raises(EntangleError, match=r"has no numbers .it is on the meta device"):
        tensor_hash(torch.ones(3, device="meta"))
