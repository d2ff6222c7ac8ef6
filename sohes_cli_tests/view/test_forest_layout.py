"""Layout of the forest picture: no two tiles meet, parts are right of their whole, everything is on the page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sohes_cli.view.forest_layout import COLUMN_STEP, ROW_STEP, TILE_H, TILE_W, flow_blocks, lay_out_tree, tile_xy


@st.composite
def forests(draw):
    n = draw(st.integers(0, 40))
    parents = [draw(st.integers(-1, i - 1)) for i in range(n)]
    children = [[j for j in range(n) if parents[j] == i] for i in range(n)]
    return [i for i in range(n) if parents[i] < 0], children


KEYS = st.tuples(st.integers(1, 500), st.integers(1, 500))


@given(forests())
def test_every_node_has_one_place_inside_of_its_block(forest):
    roots, children = forest
    blocks = [lay_out_tree(root, children) for root in roots]
    assert sorted(node for block in blocks for node in block.cells) == list(range(len(children)))
    for block in blocks:
        assert len(set(block.cells.values())) == len(block.cells)
        assert {row for row, _ in block.cells.values()} == set(range(block.rows))
        assert max(column for _, column in block.cells.values()) == block.columns - 1


@given(forests())
def test_parts_stand_right_of_their_whole_and_not_above_it(forest):
    roots, children = forest
    for root in roots:
        block = lay_out_tree(root, children)
        assert block.cells[root] == (0, 0)
        for node, (row, column) in block.cells.items():
            for child in children[node]:
                child_row, child_column = block.cells[child]
                assert child_row >= row
                assert child_column == column + 1 or (child in block.in_grid and child_column > column)


@given(forests(), KEYS)
def test_tiles_and_key_lie_on_the_page_and_apart(forest, key_size):
    roots, children = forest
    blocks = [lay_out_tree(root, children) for root in roots]
    page = flow_blocks(blocks, key_size)
    boxes = [(*page.key_xy, *key_size)]
    for block, corner in zip(blocks, page.corners_xy, strict=True):
        boxes += [(*tile_xy(corner, place), TILE_W, ROW_STEP) for place in block.cells.values()]
    assert all(x >= 0 and y >= 0 and x + w <= page.width and y + h <= page.height for x, y, w, h in boxes)
    for i, (x, y, w, h) in enumerate(boxes):
        assert all(x + w <= ox or ox + ow <= x or y + h <= oy or oy + oh <= y for ox, oy, ow, oh in boxes[:i])


@given(forests(), KEYS)
def test_trees_follow_each_other_down_the_columns(forest, key_size):
    roots, children = forest
    page = flow_blocks([lay_out_tree(root, children) for root in roots], key_size)
    assert list(page.corners_xy) == sorted(page.corners_xy)


def test_a_chain_is_a_row_and_few_parts_are_a_column():
    chain = lay_out_tree(0, [[1], [2], []])
    assert chain.cells == {0: (0, 0), 1: (0, 1), 2: (0, 2)}
    few = lay_out_tree(0, [[1, 2, 3], [], [], []])
    assert few.cells == {0: (0, 0), 1: (0, 1), 2: (1, 1), 3: (2, 1)}
    assert not few.in_grid


def test_many_leaves_make_a_grid_below_the_parts_with_parts():
    block = lay_out_tree(0, [[1, 2, 3, 4, 5], [], [], [], [6], [], []])
    assert block.cells[4] == (0, 1)
    assert block.cells[6] == (0, 2)
    assert [block.cells[i] for i in (1, 2, 3, 5)] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert block.in_grid == {1, 2, 3, 5}
    assert block.size == (3 * COLUMN_STEP - (COLUMN_STEP - TILE_W), 3 * ROW_STEP)
    assert lay_out_tree(0, [list(range(1, 31)), *([] for _ in range(30))]).rows <= 6


def test_many_trees_do_not_make_a_ribbon():
    page = flow_blocks([lay_out_tree(0, [[]])] * 60, (450, 330))
    assert 0.5 < page.width / page.height < 3
    assert TILE_H < ROW_STEP
