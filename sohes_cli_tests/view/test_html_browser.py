"""The HTML report in a real browser, opened as a file: highlight, tree, partition by pixel, two label sets."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_records import (
    BACKGROUND,
    CROWDED,
    EMPTY,
    INSIDE,
    STRANGE,
    H,
    W,
    boxes_record,
    crowded_record,
    partition,
    tree_rows,
    write_store,
)

from sohes_cli.structures import LabelRecord
from sohes_cli.view.html_report import write_report
from sohes_cli.view.selection import mask_colors, select_masks

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402 - present if the line above passed
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="neither Chromium with chromedriver nor Chrome is installed"
)

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def images(folder):
    from skimage import data

    photograph = Image.fromarray(data.chelsea()[60 : 60 + H, 100 : 100 + W])
    for name in ("a.png", STRANGE, EMPTY, CROWDED):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        photograph.save(folder / "images" / name)
    return folder / "images"


@pytest.fixture(scope="module")
def report(folder, images):
    records = [boxes_record("a.png"), boxes_record(STRANGE, ids=(1, 4)), LabelRecord(EMPTY, H, W), crowded_record()]
    write_report(write_store(folder / "labels", records), images, folder / "report", 1280, 60)
    return folder / "report"


@pytest.fixture(scope="module")
def compared(folder, images):
    """Masks 1, 2 and 3 have matches two pixels to the right; 4, 5 and 6 have none."""
    labels = write_store(folder / "prediction", [boxes_record("a.png"), boxes_record(STRANGE)])
    other = write_store(folder / "truth", [boxes_record("a.png", shift=2, ids=(1, 2, 3))])
    write_report(labels, images, folder / "compared", 1280, 60, other)
    return folder / "compared"


@pytest.fixture(scope="module")
def chromium(folder):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.implicitly_wait(5)
    yield driver
    driver.quit()


class Viewer:
    """A page of the report and what a reader does with it."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, report, name=None):
        self.driver.get("about:blank")
        self.driver.get(Path(report / "index.html").as_uri())
        self.all(".card")
        if name is not None:
            self.driver.execute_script("location.hash = Page.addressOf(arguments[0])", name)
            self.all(".stage")

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def count(self, selector):
        """Count the elements now, without waiting as `all` does."""
        return self.driver.execute_script("return document.querySelectorAll(arguments[0]).length", selector)

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return [element.text for element in self.all(selector)]

    def at(self, x, y, side=0):
        """Make an action that moves the pointer to the center of a pixel of the photograph."""
        stage = self.all(".stage")[side]
        scale = stage.size["width"] / W
        offset = [round((value + 0.5) * scale - extent * scale / 2) for value, extent in ((x, W), (y, H))]
        return ActionChains(self.driver, duration=0).move_to_element_with_offset(stage, *offset)

    def hover(self, x, y, side=0):
        self.at(x, y, side).perform()

    def click(self, x, y, side=0):
        self.at(x, y, side).click().perform()

    def press(self, *keys):
        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def pointed(self, side=0):
        """Id of the highlighted mask and those of its ancestors."""
        pane = self.all(".pane")[side]
        return pane.get_attribute("data-pointed"), pane.get_attribute("data-ancestors")

    def choose(self, value):
        self.driver.execute_script("document.querySelector(`input[value=${arguments[0]}]`).click()", value)

    def slide(self, kind, value):
        script = """const input = document.querySelector(`input.${arguments[0]}`);
            input.value = arguments[1]; input.dispatchEvent(new Event('input'))"""
        self.driver.execute_script(script, kind, value)

    def canvas(self, layer, side=0):
        """The pixels of a canvas, uint8 RGBA [H, W, 4]."""
        script = "return document.querySelectorAll(`canvas.${arguments[0]}`)[arguments[1]].toDataURL().split(',')[1]"
        return np.asarray(
            Image.open(io.BytesIO(base64.b64decode(self.driver.execute_script(script, layer, side)))).convert("RGBA")
        )

    def rows(self, side=0):
        """Id and level of each row of a tree from top to bottom, hidden or not."""
        script = """const tree = document.querySelectorAll('[role=tree]')[arguments[0]];
            const id = (item) => Number(item.querySelector('.id').textContent.slice(1));
            const level = (item) => Number(item.getAttribute('aria-level')) - 1;
            return [...tree.querySelectorAll('[role=treeitem]')].map((item) => [id(item), level(item)])"""
        return [tuple(row) for row in self.driver.execute_script(script, side)]

    def visible_rows(self):
        return [int(row.text[1:]) for row in self.all("[role=treeitem] .id") if row.is_displayed()]


@pytest.fixture
def viewer(chromium):
    yield Viewer(chromium)
    severe = [entry["message"] for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe


def test_the_gallery_names_every_image_as_text_and_finds_some(viewer, report):
    viewer.open(report)
    assert viewer.text(".card .name") == sorted(["a.png", CROWDED, EMPTY, STRANGE])
    assert viewer.text(".card .facts")[0] == "6 masks · 2 trees · depth 3"
    assert viewer.count("img[src=x]") == 0
    loaded = """const [done] = arguments;
        Promise.all([...document.images].map((image) => image.decode())).then(() => done(true), () => done(false))"""
    assert viewer.driver.execute_async_script(loaded)
    viewer.press("/", "ü #1 SUB")
    assert viewer.text(".card .name") == [STRANGE]
    assert viewer.text(".status") == ["1 of 4 images"]


def test_an_image_is_opened_and_left_by_keyboard(viewer, report):
    viewer.open(report)
    viewer.driver.execute_script("document.querySelector('.card').focus()")
    viewer.press(Keys.END, Keys.ENTER)
    assert viewer.one("h1").text == STRANGE
    viewer.one(".stage")
    assert viewer.driver.execute_async_script(
        "document.querySelector('.stage img').decode().then(() => arguments[0](true))"
    )
    viewer.driver.back()
    viewer.one(".card")
    assert viewer.driver.execute_script("return document.activeElement.querySelector('.name').textContent") == STRANGE


def test_pointing_shows_the_smallest_mask_and_its_ancestors(viewer, report):
    viewer.open(report, "a.png")
    chains = {1: "", 2: "1", 3: "2 1", 4: "", 5: "4", 6: "5 4"}
    for i, place in INSIDE.items():
        viewer.hover(*place)
        assert viewer.pointed() == (str(i), chains[i])
    assert viewer.text(".caption") == ["#6 · level 2 · score 0.600 · 2.1% of the image · part of #5 in #4"]
    viewer.hover(*BACKGROUND)
    assert viewer.pointed() == ("", "")


def test_the_rest_is_veiled_the_less_the_closer_the_ancestor(viewer, report):
    viewer.open(report, "a.png")
    viewer.hover(*INSIDE[3])
    veil = viewer.canvas("spot")
    darkness = [veil[y, x, 3] for x, y in (INSIDE[3], INSIDE[2], INSIDE[1], INSIDE[5])]
    assert darkness[0] == 0
    assert darkness == sorted(set(darkness))
    assert (veil[30, 24:50] == 255).all(), "no white outline along the mask"
    viewer.hover(*BACKGROUND)
    assert not viewer.one("canvas.spot").is_displayed()


def test_a_click_pins_a_mask_and_unfolds_the_tree_down_to_it(viewer, report):
    viewer.open(report, "a.png")
    viewer.all(".forest-head button")[1].click()
    assert viewer.visible_rows() == [1, 4]
    viewer.click(*INSIDE[6])
    assert viewer.visible_rows() == [1, 4, 5, 6]
    assert [e.get_attribute("data-position") for e in viewer.all("[aria-selected=true]")] == ["5"]
    viewer.hover(*BACKGROUND)
    assert viewer.pointed() == ("6", "5 4"), "a pinned mask is unpinned when the pointer leaves"
    viewer.hover(*INSIDE[2])
    assert viewer.pointed() == ("2", "1")
    viewer.click(*BACKGROUND)
    assert viewer.count("[aria-selected=true]") == 0
    assert viewer.pointed() == ("", "")


def test_escape_lets_go_of_a_mask_pinned_on_the_photograph(viewer, report):
    viewer.open(report, "a.png")
    viewer.click(*INSIDE[6])
    assert viewer.count("[aria-selected=true]") == 1
    viewer.press(Keys.ESCAPE)
    assert viewer.count("[aria-selected=true]") == 0


def test_the_tree_is_walked_by_keyboard(viewer, report):
    viewer.open(report, "a.png")
    viewer.hover(*BACKGROUND)
    viewer.driver.execute_script("document.querySelector('[role=treeitem]').focus()")
    steps = [
        (Keys.ARROW_DOWN, "2"),
        (Keys.ARROW_RIGHT, "3"),
        (Keys.ARROW_RIGHT, "3"),
        (Keys.ARROW_DOWN, "4"),
        (Keys.ARROW_LEFT, "4"),
        (Keys.ARROW_DOWN, "4"),
        (Keys.ARROW_RIGHT, "4"),
        (Keys.END, "6"),
        (Keys.ARROW_LEFT, "5"),
        (Keys.HOME, "1"),
        (Keys.ARROW_UP, "1"),
        (Keys.ARROW_DOWN, "2"),
    ]
    for key, focused in steps:
        viewer.press(key)
        assert viewer.pointed()[0] == focused
        assert len(viewer.all("[role=treeitem][tabindex='0']")) == 1
    viewer.press(Keys.ENTER)
    assert viewer.one("[aria-selected=true]").get_attribute("data-position") == "1"
    viewer.press(" ")
    assert viewer.count("[aria-selected=true]") == 0
    viewer.press(Keys.ENTER, Keys.ESCAPE)
    assert viewer.count("[aria-selected=true]") == 0


def test_a_row_that_is_folded_hides_its_parts_and_pointing_at_a_row_shows_its_mask(viewer, report):
    viewer.open(report, "a.png")
    first = viewer.one("[role=treeitem]")
    assert first.get_attribute("aria-expanded") == "true"
    first.find_element(By.CSS_SELECTOR, ".twisty").click()
    assert first.get_attribute("aria-expanded") == "false"
    assert viewer.visible_rows() == [1, 4, 5, 6]
    ActionChains(viewer.driver, duration=0).move_to_element(viewer.one("[data-position='4'] > .row .id")).perform()
    assert viewer.pointed() == ("5", "4")


@pytest.mark.parametrize("name", ["a.png", CROWDED])
def test_the_partition_gives_each_pixel_to_one_mask(viewer, report, name):
    record = boxes_record(name) if name == "a.png" else crowded_record()
    viewer.open(report, name)
    viewer.choose("partition")
    for level in range(max(record.forest.levels) + 1):
        viewer.slide("level", level)
        expected, n_owners = partition(record, level)
        assert (viewer.canvas("fill") == expected).all()
        share = np.floor(1000 * (expected[..., 3] > 0).mean()) / 10
        assert viewer.text(".forest .status") == [f"Level {level}: {n_owners} masks, {share:.1f}% of pixels covered"]


def test_moving_the_level_turns_to_the_partition_and_grays_what_lies_below(viewer, report):
    viewer.open(report, "a.png")
    assert viewer.one(".image-view").get_attribute("data-mode") == "all"
    viewer.one("input.level").send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert viewer.one(".image-view").get_attribute("data-mode") == "partition"
    assert viewer.text(".forest .status") == ["Level 0: 2 masks, 64.2% of pixels covered"]  # 8000 + 4900 - 560 of 19200
    assert sorted(e.get_attribute("data-position") for e in viewer.all(".beyond")) == ["1", "2", "4", "5"]
    viewer.hover(*INSIDE[3])
    assert viewer.pointed() == ("1", "")
    viewer.choose("all")
    viewer.hover(*INSIDE[6])
    assert viewer.pointed() == ("6", "5 4")


@pytest.mark.parametrize("limit", [1, 7, 25, 40])
def test_a_limit_keeps_the_masks_the_forest_and_the_colors_of_the_pictures(viewer, report, limit):
    viewer.open(report, CROWDED)
    viewer.slide("limit", limit)
    chosen = select_masks(crowded_record(), limit)
    assert viewer.rows() == tree_rows(chosen)
    level = max(chosen.forest.levels)
    viewer.slide("level", level)
    assert (viewer.canvas("fill") == partition(chosen, level)[0]).all()


def test_in_all_masks_the_smallest_lies_on_top_and_every_outline_is_drawn(viewer, report):
    record = boxes_record("a.png")
    viewer.open(report, "a.png")
    viewer.slide("limit", 6)
    fill, lines = viewer.canvas("fill"), viewer.canvas("lines")
    for (x, y), color in zip(INSIDE.values(), mask_colors(record), strict=True):
        assert tuple(fill[y, x]) == (*color, 255)
        assert lines[y, x, 3] == 0
    assert fill[BACKGROUND[1], BACKGROUND[0], 3] == 0
    assert (lines[30:100, 80, 3] == 255).all(), "the outline of the smaller root on the larger"
    assert (lines[10:110, 87, 3] == 255).all(), "the outline of the larger root below the smaller"


def test_an_image_without_masks_shows_its_photograph(viewer, report):
    viewer.open(report, EMPTY)
    assert viewer.text(".tree") == ["No masks"]
    viewer.choose("partition")
    assert viewer.text(".forest .status") == ["Level 0: 0 masks, 0.0% of pixels covered"]
    assert not viewer.canvas("fill").any()


def test_an_address_of_no_image_is_answered(viewer, report):
    viewer.open(report)
    for address in ("#nothing.jpg", "#%E0%A4%A"):
        viewer.driver.execute_script("location.hash = arguments[0]", address)
        assert viewer.one("h1").text == "No such image"


def test_pointing_on_one_side_shows_the_match_on_the_other(viewer, compared):
    viewer.open(compared, "a.png")
    assert viewer.text("h2") == ["prediction", "truth"]
    viewer.hover(*INSIDE[2], side=1)
    assert viewer.pointed(0) == ("2", "1")
    assert viewer.pointed(1) == ("2", "1")
    iou = 52 / 56
    assert f"IoU {iou:.2f} with #2" in viewer.text(".caption")[0]
    viewer.hover(*INSIDE[6], side=0)
    assert viewer.pointed(0) == ("6", "5 4")
    assert viewer.pointed(1) == ("", "")
    captions = viewer.text(".caption")
    assert captions[0].endswith("unmatched")
    assert captions[1] == "No mask here matches."


def test_the_trees_stand_side_by_side_whatever_their_lengths(viewer, compared):
    viewer.open(compared, "a.png")
    assert len({element.rect["y"] for element in viewer.all(".forest")}) == 1


def test_matched_and_unmatched_masks_are_marked(viewer, compared):
    viewer.open(compared, "a.png")
    assert viewer.text(".match")[:6] == ["IoU 0.95", "IoU 0.93", "IoU 0.86", "unmatched", "unmatched", "unmatched"]
    viewer.choose("unmatched")
    assert (viewer.rows(0), viewer.rows(1)) == ([(4, 0), (5, 1), (6, 2)], [])
    viewer.driver.execute_script("document.querySelector('input[value=matched]').click()")
    assert viewer.rows(0) == viewer.rows(1) == [(1, 0), (2, 1), (3, 2)]


def test_the_gallery_of_two_sets_counts_matches(viewer, compared):
    viewer.open(compared)
    facts = viewer.text(".card .facts")
    assert facts[1] == "3 matched of 6 and 3"
    assert facts[3] == "no labels to compare"
    viewer.open(compared, STRANGE)
    assert len(viewer.all(".stage")) == 1
    assert "truth has no labels of it" in viewer.one("#facts").text


def test_a_missing_data_file_is_named(chromium, folder, images):
    report = folder / "broken"
    write_report(write_store(folder / "one", [boxes_record("a.png")]), images, report, 1280, 60)
    (report / "data/000001.js").unlink()
    viewer = Viewer(chromium)
    viewer.open(report)
    viewer.one(".card").click()
    assert "data/000001.js cannot be loaded" in viewer.one(".failure").text
    chromium.get_log("browser")  # the browser reports the missing file, as it should


def test_a_gallery_of_many_images_grows_as_it_is_scrolled(viewer, report):
    viewer.open(report)
    n = viewer.driver.execute_script("""
        const image = { ...Page.index.images[0], masks: 1 };
        const images = Array.from({ length: 300 }, (_, i) => ({ ...image, file_name: `photo ${i}.jpg` }));
        Page.gallery = new Gallery({ sets: ["labels"], images }, Page.addressOf);
        Page.showGallery();
        return document.querySelectorAll(".card").length""")
    assert n < 300
    for _ in range(20):
        viewer.driver.execute_async_script(
            "window.scrollTo(0, document.body.scrollHeight); requestAnimationFrame(() => setTimeout(arguments[0], 30))"
        )
    assert viewer.count(".card") == 300
