"""QCML: TFRecord files, written here by other programs (protobuf, tensorboard)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from pydantic import ValidationError
from tensorboard.summary.writer.record_writer import RecordWriter

from ramify.errors import RamifyError
from ramify.sources.formats import formats
from ramify.sources.parsing.tfrecord import masked_crc, parse_example

HARTREE, BOHR = 27.211386245988, 0.529177210903  # eV, Å; CODATA 2018


def example_class() -> Any:
    """`tf.train.Example`, from its published definition (tensorflow/core/example/feature.proto), by protobuf."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    for name, kind in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        message = file.message_type.add(name=name)
        message.field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes", "float", "int64"), 1):
        feature.field.add(
            name=f"{name}_list",
            number=number,
            type=field.TYPE_MESSAGE,
            label=field.LABEL_OPTIONAL,
            type_name=f".t.{name.capitalize()}List",
            oneof_index=0,
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL, type_name=".t.Feature")
    features.field.add(
        name="feature",
        number=1,
        type=field.TYPE_MESSAGE,
        label=field.LABEL_REPEATED,
        type_name=".t.Features.FeatureEntry",
    )
    example = file.message_type.add(name="Example")
    example.field.add(
        name="features", number=1, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL, type_name=".t.Features"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


EXAMPLE = example_class()


def encoded(features: dict[str, Any]) -> bytes:
    message = EXAMPLE()
    for name, values in features.items():
        feature = message.features.feature[name]
        if isinstance(values[0], bytes):
            feature.bytes_list.value.extend(values)
        elif isinstance(values[0], int):
            feature.int64_list.value.extend(values)
        else:
            feature.float_list.value.extend(values)
    text: bytes = message.SerializeToString()
    return text


def molecules(count: int = 8) -> list[dict[str, Any]]:
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        n = 3 + i % 3
        numbers = rng.integers(1, 20, n).tolist()
        charge = -1 if i == 2 else 0
        made.append(
            {
                "key_hash": [f"k{i}".encode()],
                "atomic_numbers": numbers,
                "positions": rng.normal(0, 2, 3 * n).tolist(),
                "pbe0_energy": [-2000.0 - i],
                "pbe0_formation_energy": [-1.5 - 0.1 * i],
                "pbe0_forces": rng.normal(0, 0.1, 3 * n).tolist(),
                "charge": [charge],
                "multiplicity": [1 + (sum(numbers) - charge) % 2],
                "is_outlier": [int(i == 5)],
            }
        )
    return made


def write(path: Path, made: list[dict[str, Any]]) -> Path:
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for molecule in made:
            writer.write(encoded(molecule))
    return path


def test_molecules(tmp_path: Path, read: Any) -> None:
    made = molecules()
    path = write(tmp_path / "qcml.tfrecord-00000-of-00001", made)
    found, quarantine = read("qcml", path, length="bohr")
    del made[5]
    assert quarantine.counts == {"marked as an outlier by the publisher (outliers)": 1}
    assert not quarantine.remarks
    assert found.row.tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert found.numbers.tolist() == [z for m in made for z in m["atomic_numbers"]]
    positions = np.concatenate([m["positions"] for m in made]).reshape(-1, 3)
    np.testing.assert_allclose(found.positions, positions * BOHR, rtol=1e-6)
    forces = np.concatenate([m["pbe0_forces"] for m in made]).reshape(-1, 3)
    np.testing.assert_allclose(found.forces, forces * HARTREE / BOHR, rtol=1e-6)
    np.testing.assert_allclose(found.energy, [m["pbe0_formation_energy"][0] * HARTREE for m in made], rtol=1e-6)
    found, _ = read("qcml", path, length="Å", energy="total", outliers="keep")
    np.testing.assert_allclose(found.energy, (-2000.0 - np.arange(8)) * HARTREE, rtol=1e-7)
    np.testing.assert_allclose(found.positions[: len(positions[:3])], positions[:3], rtol=1e-6)


def test_the_unit_of_length_is_asked_for() -> None:
    with pytest.raises(ValidationError, match="length"):
        formats()["qcml"].options.model_validate({"format": "qcml", "path": "x"})


def test_negative_integers_and_checksums() -> None:
    found = parse_example(encoded({"charge": [-3, 2**40], "name": [b"a", b""], "x": [1.5]}))
    assert found["charge"].tolist() == [-3, 2**40]
    assert found["name"] == [b"a", b""]
    assert found["x"].tolist() == [1.5]
    # RFC 3720, B.4: the CRC-32C of 32 zero bytes is 0x8a9136aa; then masked as TensorFlow does
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"atomic_numbers": [1, -1, 300]}, "malformed structure"),
        ({"positions": [0.0, 1.0]}, "malformed structure"),
        ({"pbe0_forces": [0.0, 1.0]}, "malformed forces"),
        ({"pbe0_formation_energy": [float("nan")]}, "non-finite label"),
    ],
)
def test_spoiled_molecules(tmp_path: Path, read: Any, changes: dict[str, Any], reason: str) -> None:
    made = molecules(3)
    made[1] |= changes
    found, quarantine = read("qcml", write(tmp_path / "a", made), length="Å")
    assert found.row.tolist() == [0, 2]
    assert quarantine.counts == {reason: 1}


def test_damaged_files_give_messages(tmp_path: Path, read: Any) -> None:
    path = write(tmp_path / "a", molecules())
    content, rng = path.read_bytes(), np.random.default_rng(0)
    sizes = np.cumsum([len(encoded(m)) + 16 for m in molecules()])
    for size in rng.integers(1, len(content), 30).tolist():
        path.write_bytes(content[:size])
        if size not in sizes:
            with pytest.raises(RamifyError, match="truncated"):
                read("qcml", path, length="Å")
    for at in rng.integers(0, len(content), 30).tolist():
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        with pytest.raises(RamifyError, match=r"\n  fix: "):
            read("qcml", path, length="Å")
    with pytest.raises(RamifyError, match="dft_force_field"):
        read("qcml", write(path, [{"smiles": [b"C"]}]), length="Å")
    path.write_bytes(b"not a record at all")
    with pytest.raises(RamifyError, match="not a TFRecord file"):
        read("qcml", path, length="Å")
