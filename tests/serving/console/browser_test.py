"""The page in a real browser: drawing, dropping, watching, by keyboard, on a phone."""

import base64
import contextlib
import dataclasses
import hashlib
import io
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from shown import ROUNDED, VISIBLE

pytestmark = pytest.mark.browser
PATIENCE = 30.0
DIGIT = np.random.default_rng(2).integers(0, 256, (28, 28), np.uint8)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.quit()


class Page:
    """The console as a visitor meets it."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.get(url)
        self.wait(lambda: "classes" in self.text("model"))

    def element(self, name):
        return self.browser.find_element(By.ID, name)

    def text(self, name):
        return self.element(name).text

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition):
        return WebDriverWait(self.browser, PATIENCE, 0.02).until(lambda _: condition())

    def stroke(self):
        """A line with the pointer, down and to the right."""
        pad = self.element("pad")
        actions = ActionChains(self.browser, 20).move_to_element_with_offset(pad, -60, -60)
        actions.click_and_hold().move_by_offset(60, 20).move_by_offset(0, 70).release().perform()

    def drop(self, content, name):
        """Lets a file fall on the page."""
        self.run(
            """
            const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], arguments[1]));
            const event = { bubbles: true, cancelable: true, dataTransfer };
            const pad = document.getElementById("pad");
            for (const kind of ["dragenter", "dragover", "drop"]) {
              pad.dispatchEvent(new DragEvent(kind, event));
            }
            """,
            base64.b64encode(content).decode(),
            name,
        )
        self.wait(lambda: name in self.text("source") or self.text("problem"))

    def certify(self, *, n=3000):
        self.run("document.getElementById('n').value = arguments[0]", n)
        self.element("certify").click()

    def finish(self):
        self.wait(lambda: "Finished" in self.text("drawn"))

    def shown_pixels(self):
        """What the enlarged picture shows, uint8 [H, W, 3]."""
        width, height, data = self.run(
            """
            const {width, height} = document.getElementById("preview");
            const brush = document.getElementById("preview").getContext("2d");
            return [width, height, Array.from(brush.getImageData(0, 0, width, height).data)];
            """
        )
        return np.array(data, np.uint8).reshape(height, width, 4)[..., :3]

    def complaints(self):
        """What the browser says of the page, violated content policies among it."""
        entries = self.browser.get_log("browser")
        return [entry["message"] for entry in entries if entry["source"] != "rendering"]


@pytest.fixture
def page(browser, served, digits):
    digits.per_draw = 0.0005
    console = served()
    made = Page(browser, console.url)
    made.sidecar = console.sidecar
    yield made
    assert made.complaints() == []


def _file(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def _sha256(pixels):
    return hashlib.sha256((pixels / np.float32(255)).astype("<f4").tobytes()).hexdigest()


def test_numbers_and_text_are_shown_as_in_python(page):
    vectors = [[repr(value), digits, times] for value, digits, times, _, _ in ROUNDED]
    answers = """
        const [vectors, texts] = arguments;
        const special = { inf: Infinity, "-inf": -Infinity, nan: NaN, "-0.0": -0 };
        return import("/shown.js").then(({ down, up, visible }) => [
          vectors.map(([text, digits, times]) => {
            const value = special[text] ?? Number(text);
            return [down(value, digits, times), up(value, digits, times)];
          }),
          texts.map(visible),
        ]);
        """
    numbers, texts = page.run(answers, vectors, [text for text, _ in VISIBLE])
    assert numbers == [[low, high] for *_, low, high in ROUNDED]
    assert texts == [shown for _, shown in VISIBLE]


def test_drawing_a_digit_and_watching_the_radius_grow(page):
    assert not page.element("certify").is_enabled()
    page.stroke()
    assert page.text("source") == "Drawn here."
    page.certify()
    seen = []

    def watch():
        radius, drawn = page.run(
            "return ['radius', 'drawn'].map((id) => document.getElementById(id).textContent)"
        )
        seen.append(radius)
        return "Finished" in drawn

    page.wait(watch)
    radii = [radius for radius in seen if radius]
    assert len(set(radii)) >= 3
    assert radii == sorted(radii)
    assert page.text("class") == "3"
    assert float(radii[-1]) > 0.4
    assert page.text("drawn") == "3,000 of 3,000 draws. Finished."
    assert re.match(r"Class 3, certified radius 0\.\d+, after 3,000 draws", page.text("spoken"))

    rows = page.element("votes").find_elements(By.CSS_SELECTOR, "tbody tr")
    assert len(rows) == 10
    votes = [int(row.text.split()[-1].replace(",", "")) for row in rows]
    assert sum(votes) == 3000
    assert "chosen" in rows[3].get_attribute("class")
    statement = page.text("statement")
    assert "answers class 3 for these pixels and for all pixels" in statement
    assert f"at l2 distance below {radii[-1]}" in statement
    shown = page.shown_pixels()[..., :1]
    assert 0 < shown.mean() < 128
    assert f"{_sha256(shown)}, as this page computes it" in page.text("facts")


def test_dropping_a_file_of_the_models_size_keeps_its_pixels(page):
    page.drop(_file(Image.fromarray(DIGIT)), "digit.png")
    assert page.text("source") == "digit.png: 28 \u00d7 28 pixels, as it is."
    np.testing.assert_array_equal(page.shown_pixels()[..., 0], DIGIT)
    page.certify(n=500)
    page.finish()
    assert _sha256(DIGIT) in page.text("facts")


def test_dropping_a_photograph_says_that_it_is_resized(page):
    photograph = Image.new("RGB", (200, 100), (255, 255, 255))
    page.drop(_file(photograph, "JPEG"), "photo.jpg")
    assert "200 \u00d7 100 pixels, resized to 28 \u00d7 28" in page.text("source")
    assert "about the resized pixels" in page.text("source")
    shown = page.shown_pixels()[..., 0]
    assert (shown[7:21] == 255).all()
    assert (shown[:7] == 0).all()
    assert (shown[21:] == 0).all()
    page.element("invert").click()
    np.testing.assert_array_equal(page.shown_pixels()[..., 0], 255 - shown)


def test_dropping_what_is_no_image(page):
    page.drop(b"hello", "letter.txt")
    assert page.text("problem") == "letter.txt is not an image that this browser can read."
    assert not page.element("certify").is_enabled()


def test_choosing_a_file(page, tmp_path):
    (tmp_path / "digit.png").write_bytes(_file(Image.fromarray(DIGIT)))
    page.element("file").send_keys(str(tmp_path / "digit.png"))
    page.wait(lambda: "digit.png" in page.text("source"))
    np.testing.assert_array_equal(page.shown_pixels()[..., 0], DIGIT)
    page.element("clear").click()
    assert page.shown_pixels().sum() == 0
    assert not page.element("certify").is_enabled()


def test_colour_images(browser, served, digits):
    digits.smoothing = dataclasses.replace(digits.smoothing, input_shape=(32, 32, 3))
    page = Page(browser, served().url)
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    page.drop(_file(Image.fromarray(colours)), "colours.png")
    np.testing.assert_array_equal(page.shown_pixels(), colours)
    page.certify(n=500)
    page.finish()
    assert _sha256(colours) in page.text("facts")
    assert page.element("ink").is_displayed()


def test_stopping_keeps_the_certificate(page):
    page.stroke()
    page.certify(n=1_000_000)
    page.wait(lambda: page.element("shown").is_displayed())
    assert page.sidecar.admission.inside() == 1
    assert not page.element("certify").is_enabled()
    page.element("halt").click()
    page.wait(lambda: "Stopped by you" in page.text("drawn"))
    radius = page.text("radius")
    limit = time.monotonic() + PATIENCE
    while page.sidecar.admission.inside():
        assert time.monotonic() < limit
    assert float(radius) > 0
    assert page.text("radius") == radius
    assert page.element("certify").is_enabled()
    assert not page.element("halt").is_enabled()


def test_a_radius_to_decide(page):
    page.stroke()
    Select(page.element("stop")).select_by_value("decide")
    assert page.text("target-name") == "Radius to decide"
    target = page.element("target")
    target.clear()
    target.send_keys("0.2")
    page.certify(n=100_000)
    page.finish()
    assert float(page.text("radius")) >= 0.2
    assert "stopping before all planned draws" in page.text("statement")


def test_a_refusal_is_shown_with_its_request(page):
    page.stroke()
    with contextlib.ExitStack() as places:
        for _ in range(8):
            places.enter_context(page.sidecar.admission.enter("someone else"))
        page.certify()
        page.wait(lambda: page.text("problem"))
    assert "the limit is 8; try again later (RESOURCE_EXHAUSTED, request " in page.text("problem")
    assert len(page.complaints()) == 1  # the browser's own note of status 429
    page.certify()
    page.finish()
    assert not page.element("problem").is_displayed()


def test_by_keyboard_alone(page):
    def press(*keys):
        ActionChains(page.browser, 20).send_keys(*keys).perform()

    def focused():
        return page.run("return document.activeElement.id")

    press(Keys.TAB)
    assert focused() == "pad"
    press(Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.SPACE, *[Keys.ARROW_DOWN] * 6, Keys.SPACE)
    press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    drawn = page.shown_pixels()[..., 0]
    assert drawn[13:20, 13].min() > 200
    assert drawn[:, 17:].max() == 0
    assert page.element("cursor").is_displayed()
    reached = []
    while focused() != "certify":
        press(Keys.TAB)
        reached.append(focused())
        outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached
    assert {"clear", "choose", "invert", "stop", "n", "alpha"} <= set(reached)
    press(Keys.ENTER)
    page.finish()
    assert page.text("class") == "3"
    page.element("pad").send_keys(Keys.DELETE)
    assert page.shown_pixels().sum() == 0


def test_everything_that_is_used_has_a_name(page):
    unnamed = page.run(
        """
        const used = "button, input:not([hidden]), select, summary, a, canvas, svg, progress";
        return [...document.querySelectorAll(`${used}, table`)]
          .filter((e) => !(e.ariaLabel || e.labels?.length || e.textContent.trim() || e.caption))
          .map((e) => e.outerHTML);
        """
    )
    assert unnamed == []
    assert page.element("spoken").get_attribute("aria-live") == "polite"


@pytest.fixture
def phone(browser):
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    yield
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_on_a_phone(phone, page):
    page.stroke()
    page.certify()
    page.finish()
    assert page.run("return innerWidth") == 360
    assert page.run("return document.documentElement.scrollWidth") == 360
    outside = page.run(
        """
        return [...document.querySelectorAll("main *")]
          .filter((e) => e.getClientRects().length && !e.closest(".unseen"))
          .filter((e) => e.getBoundingClientRect().right > 360.5)
          .map((e) => e.outerHTML.slice(0, 80));
        """
    )
    assert outside == []
    low = page.run(
        """
        return [...document.querySelectorAll("button, select, input")]
          .filter((e) => e.getClientRects().length && e.type !== "checkbox")
          .filter((e) => e.getBoundingClientRect().height < 40).map((e) => e.id);
        """
    )
    assert low == []


# Of every text that is shown, against the nearest background that is not see-through.
FAINT = """
const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (colour) => {
  const [r, g, b] = channels(colour).slice(0, 3).map((value) => {
    const share = value / 255;
    return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if ((channels(colour)[3] ?? 1) > 0) return colour;
  }
};
const words = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
return [...document.querySelectorAll("body *")]
  .filter((e) => words(e) && e.getClientRects().length && !e.disabled)
  .map((e) => {
    const style = getComputedStyle(e);
    const ink = e.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
    return [e.outerHTML.slice(0, 60), (a + 0.05) / (b + 0.05)];
  });
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_strong_enough(page, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    page.stroke()
    page.certify(n=500)
    page.finish()
    page.drop(b"", "nothing")
    ratios = page.run(FAINT)
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(ratios) > 40
    assert [pair for pair in ratios if pair[1] < 4.5] == []
