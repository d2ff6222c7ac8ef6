"""Index of a JSON file: its spans parse to the values of the whole file, and damage is an error."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sohes_cli.errors import DatasetError
from sohes_cli.labels.json_index import ABSENT, INTEGER, OTHER, JsonFile

TEXT = st.text(st.sampled_from('ab"\\/[]{},: \n\t\r\b\x00\x7fé☃𝄞\ud800'), max_size=8) | st.text(max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5), max_leaves=30
)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def index_of(text, behind=b""):
    """Make a file of these bytes; `behind` follows in memory and must not be read."""
    data = text if isinstance(text, bytes) else text.encode()
    return JsonFile(Path("some.json"), np.frombuffer(data + behind, np.uint8)[: len(data)])


def spaced(value, seed):
    """JSON with white space of all kinds between all tokens, and with letters escaped or not."""
    rng = random.Random(seed)

    def space():
        return "".join(rng.choices(" \n\r\t", k=rng.choice((0, 0, 1, 3))))

    def written(item):
        if isinstance(item, list):
            text = "[" + (",".join(map(written, item)) or space()) + "]"
        elif isinstance(item, dict):
            text = "{" + (",".join(written(k) + ":" + written(v) for k, v in item.items()) or space()) + "}"
        else:
            text = json.dumps(
                item, ensure_ascii=isinstance(item, str) and (rng.random() < 0.5 or not item.isprintable())
            )
        return space() + text + space()

    return written(value).encode()


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUES, max_size=8), st.integers(0, 2**32), st.booleans())
def test_elements_of_an_array_parse_to_its_values(values, seed, is_marked):
    file = index_of(BYTE_ORDER_MARK * is_marked + spaced(values, seed))
    assert file.is_array()
    spans = file.elements(file.start)
    assert (spans.dtype, spans.shape) == (np.int64, (len(values), 2))
    assert [file.parse(span) for span in spans] == file.parse_all(spans) == values
    assert file.parse_all(spans[::-2]) == values[::-2]
    assert all(bytes(file.data[begin:end]).strip() == bytes(file.data[begin:end]) for begin, end in spans)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(TEXT, VALUES, max_size=8), st.integers(0, 2**32), st.booleans())
def test_members_of_an_object_parse_to_its_values(values, seed, is_marked):
    file = index_of(BYTE_ORDER_MARK * is_marked + spaced(values, seed))
    assert not file.is_array()
    members = file.members()
    assert {key: file.parse(span) for key, span in members.items()} == values
    for key, value in values.items():
        if isinstance(value, list):
            assert file.parse_all(file.elements(int(members[key][0]))) == value


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(["id", "i", "idd", "image_id", 'id"']) | TEXT, VALUES, max_size=5)),
    st.integers(0, 2**32),
)
def test_integers_are_those_behind_the_key(objects, seed):
    file = index_of(spaced(objects, seed))
    values, found = file.integers(file.elements(file.start), "id")
    assert (values.dtype, found.dtype, values.shape, found.shape) == (
        np.int64,
        np.uint8,
        (len(objects),),
        (len(objects),),
    )
    for item, value, kind in zip(objects, values.tolist(), found.tolist(), strict=True):
        expected = item.get("id")
        if "id" not in item:
            assert (kind, value) == (ABSENT, 0)
        elif type(expected) is int and abs(expected) < 10**18:
            assert (kind, value) == (INTEGER, expected)
        else:
            assert kind == OTHER


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ('{"id": 7}', INTEGER, 7),
        ('{"id":-7}', INTEGER, -7),
        ('{"id"\n:\t 0\r\n}', INTEGER, 0),
        ('{"id": -0}', INTEGER, 0),
        ('{"a": 1, "id": 999999999999999999, "b": 2}', INTEGER, 10**18 - 1),
        ('{"id": -999999999999999999}', INTEGER, 1 - 10**18),
        ('{"id": 1000000000000000000}', OTHER, None),
        ('{"id": 9223372036854775808}', OTHER, None),
        ('{"id": 18446744073709551617}', OTHER, None),
        ('{"id": 1.0}', OTHER, None),
        ('{"id": 1e3}', OTHER, None),
        ('{"id": 1E3}', OTHER, None),
        ('{"id": "7"}', OTHER, None),
        ('{"id": true}', OTHER, None),
        ('{"id": null}', OTHER, None),
        ('{"id": [7]}', OTHER, None),
        ('{"id": {"id": 7}}', OTHER, None),
        ('{"a": {"id": 7}}', ABSENT, 0),
        ('{"a": {"b": [{"id": 7}]}, "id": 8}', INTEGER, 8),
        ('{"a": [1, "id", 7], "id": 8}', INTEGER, 8),
        ('{"a": "id", "b": 7}', ABSENT, 0),
        ('{"a": "\\"id\\": 7", "id": 8}', INTEGER, 8),
        ('{"a": "\\\\", "id": 8}', INTEGER, 8),
        ('{"a": "}],{", "id": 8}', INTEGER, 8),
        ('{"": 1, "i": 2, "ID": 3, "id ": 4, "image_id": 5}', ABSENT, 0),
        ("{}", ABSENT, 0),
        ('["a", "id", 7, 8]', ABSENT, 0),
        ('"id"', ABSENT, 0),
        ("7", ABSENT, 0),
    ],
)
def test_what_counts_as_an_integer(text, kind, value):
    file = index_of(f"[{text}]")
    values, found = file.integers(file.elements(file.start), "id")
    assert found.tolist() == [kind]
    assert value is None or values.tolist() == [value]


def test_a_key_written_with_escapes_is_not_seen_but_parses():
    file = index_of('[{"\\u0069d": 7}]')
    spans = file.elements(file.start)
    assert file.integers(spans, "id")[1].tolist() == [ABSENT]
    assert file.parse(spans[0]) == {"id": 7}


def test_many_elements_and_nested_arrays():
    values = [[i, {"id": i}] if i % 3 else {"id": i} for i in range(5000)]
    file = index_of(json.dumps(values))
    spans = file.elements(file.start)
    assert file.parse_all(spans) == values
    assert file.integers(spans, "id")[0].tolist() == [0 if i % 3 else i for i in range(5000)]
    assert file.elements(int(spans[1, 0])).shape == (2, 2)
    nothing = np.zeros((0, 2), np.int64)
    assert (file.parse_all(nothing), file.integers(nothing, "id")[0].shape) == ([], (0,))


def test_deep_nesting_is_followed_but_not_parsed():
    depth = 100_000
    file = index_of("[" + "[" * depth + "]" * depth + ', {"id": 3}]')
    spans = file.elements(file.start)
    assert spans.tolist()[0] == [1, 1 + 2 * depth]
    assert file.parse(spans[1]) == {"id": 3}
    for call in (lambda: file.parse(spans[0]), lambda: file.parse_all(spans)):
        with pytest.raises(DatasetError, match=r"some\.json is not valid JSON.*byte 1"):
            call()


@pytest.mark.parametrize("text", ["[]", "[ \n]", " []\n", "\ufeff[]"])
def test_an_empty_array_has_no_elements(text):
    file = index_of(text)
    assert file.is_array()
    assert file.elements(file.start).shape == (0, 2)


@pytest.mark.parametrize("text", ["{}", "\t{ } ", "\ufeff {}"])
def test_an_empty_object_has_no_members(text):
    assert index_of(text).members() == {}


SMALL = (
    b'\xef\xbb\xbf {"info": {"a": "\\\\\\"]"}, "images": [{"id": 12}, {"id": -3, "x": [1, "\\u00e9"]}],'
    b'"annotations" : [ ] }'
)


@pytest.mark.parametrize("cut", range(len(SMALL)))
def test_a_file_cut_anywhere_is_an_error_and_nothing_behind_it_is_read(cut):
    for behind in (b"", SMALL[cut:], b"9" * 40 + b"}]" * 4):
        file = index_of(SMALL[:cut], behind)
        assert not file.is_array()
        with pytest.raises(DatasetError, match=r"some\.json is not valid JSON"):
            file.members()


RESULTS = b'[{"id": 12, "b": "\\\\"}, {"a": [1, {"id": 5}], "id" : -34}, {"id": 56}] '


@pytest.mark.parametrize("cut", range(len(RESULTS)))
def test_an_array_cut_anywhere_is_an_error_and_nothing_behind_it_is_read(cut):
    whole = index_of(RESULTS)
    spans = whole.elements(whole.start)
    for behind in (b"", RESULTS[cut:], b"9" * 40 + b"}]" * 4):
        file = index_of(RESULTS[:cut], behind)
        if cut < len(RESULTS) - 1:
            with pytest.raises(DatasetError, match=r"some\.json is not valid JSON"):
                file.elements(file.start)
        inside = spans[spans[:, 0] < cut]  # as if the file had shrunk since it was opened
        values, found = file.integers(inside, "id")
        for (begin, end), value, kind in zip(inside.tolist(), values.tolist(), found.tolist(), strict=True):
            complete = end <= cut
            assert kind != INTEGER or value == json.loads(RESULTS[begin:end])["id"]
            assert not complete or kind == INTEGER


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "\ufeff",
        "null",
        "5",
        '"text"',
        '{"a" 1}',
        '{"a"}',
        '{"a":}',
        '{"a": , "b": 1}',
        "{1: 2}",
        "{[1]: 2}",
        '{"a": 1,}',
        '{, "a": 1}',
        '{"a": 1,, "b": 2}',
        '{"a": 1]',
        '{"a": 1} {"a": 2}',
        '{"a": 1}]',
        '{"\\x": 1}',
        '{"a\nb": 1}',
        '{"a": "b}',
        '{"a": "b\\"}',
        "not JSON at all",
        "{'a': 1}",
    ],
)
def test_what_is_no_object_has_no_members(text):
    with pytest.raises(DatasetError, match=r"some\.json is not valid JSON: .+ \(byte \d+\)") as error:
        index_of(text).members()
    assert error.value.hint


@pytest.mark.parametrize(
    "text", ["[1,]", "[,]", "[,1]", "[1,,2]", "[1}", "[1][2]", "[1] x", '[{"a": 1], 2', "[1", '["]', "[[]"]
)
def test_an_array_with_missing_values_or_more_behind_it_is_damaged(text):
    file = index_of(text)
    with pytest.raises(DatasetError, match=r"is not valid JSON: .+ \(byte \d+\)"):
        file.elements(file.start)


def test_the_error_names_the_byte():
    with pytest.raises(DatasetError, match=r"expected the end of the file \(byte 4\)"):
        index_of("[1] [2]").elements(0)
    with pytest.raises(DatasetError, match=r"ends too early \(byte 3\)"):
        index_of("[1,").elements(0)
    with pytest.raises(DatasetError, match=r"expected an array or an object \(byte 1\)"):
        index_of("[1]").elements(1)
    with pytest.raises(DatasetError, match=r"expected an array or an object \(byte 9\)"):
        index_of("[1]").elements(9)


@pytest.mark.parametrize(
    "item", ["1 2", '{"a": 1]', "[1}", "{'a': 1}", "tru", '"a\nb"', '{"a": 1 "b": 2}', "01", "\x00", '"\\ud8"']
)
def test_damage_inside_an_element_shows_when_it_is_parsed(item):
    file = index_of(f"[5, {item}, 6]")
    spans = file.elements(file.start)
    assert len(spans) == 3
    assert file.parse_all(spans[::2]) == [5, 6]
    for call in (lambda: file.parse(spans[1]), lambda: file.parse_all(spans)):
        with pytest.raises(DatasetError, match=r"some\.json is not valid JSON.*byte 4"):
            call()


def test_bytes_that_are_no_text_are_damaged():
    file = index_of(b'["\xff\xfe", 1]')
    spans = file.elements(file.start)
    with pytest.raises(DatasetError, match=r"is not valid JSON"):
        file.parse_all(spans)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3), st.sampled_from([SMALL, RESULTS]))
def test_mutated_files_are_read_as_json_does_or_refused(seed, n_changes, text):
    rng = random.Random(seed)
    data = bytearray(text)
    for _ in range(n_changes):
        data[rng.randrange(len(data))] = rng.choice(b'"\\[]{},: 1x\x00\xff')
    file = index_of(bytes(data))
    try:
        read = (
            file.parse_all(file.elements(file.start))
            if file.is_array()
            else {key: file.parse(span) for key, span in file.members().items()}
        )
    except DatasetError:
        with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
            json.loads(bytes(data))
        return
    assert read == json.loads(bytes(data))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([b"", b"[", b"{", b'{"a": [', BYTE_ORDER_MARK]), st.binary(max_size=100))
def test_garbage_is_an_error(opening, garbage):
    file = index_of(opening + garbage + b"\xff")  # no JSON ends so
    with pytest.raises(DatasetError, match="is not valid JSON"):
        file.elements(file.start) if file.is_array() else file.members()


def test_a_file_is_opened_without_reading_it(tmp_path):
    path = tmp_path / "some.json"
    path.write_bytes(BYTE_ORDER_MARK + b' [{"id": 4}]\n')
    file = JsonFile.open(path)
    assert (file.path, len(file.data), file.start) == (path, path.stat().st_size, 4)
    assert file.parse_all(file.elements(file.start)) == [{"id": 4}]


def test_what_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "empty.json").touch()
    with pytest.raises(DatasetError, match=r"empty\.json is empty"):
        JsonFile.open(tmp_path / "empty.json")
    with pytest.raises(DatasetError, match=r"missing\.json cannot be read: No such file"):
        JsonFile.open(tmp_path / "missing.json")
    with pytest.raises(DatasetError, match="cannot be read: Is a directory"):
        JsonFile.open(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")  # as a shell's <(...) is
    with pytest.raises(DatasetError, match=r"pipe\.json is not a regular file"):
        JsonFile.open(tmp_path / "pipe.json")
