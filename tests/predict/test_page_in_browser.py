"""The page in a real browser, at the widths of a desktop and of a phone."""

import shutil

import pytest

from proscale.predict.page import Gallery, gallery_item
from proscale.predict.pictures import drawing_of

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(params=[(1280, 800), (390, 844)], ids=["desktop", "phone"])
def browser(request, tmp_path, panoptic, classes, pixels):
    """A browser that shows a page of three images from a file."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no chromium with chromedriver on PATH")
    page = Gallery(tmp_path / "index.html", title="Animals", subtitle="panoptic")
    for name in ("first", "second", "third"):
        page.add(gallery_item(name, pixels(), panoptic, drawing_of(panoptic, classes)))
    page.finish([])
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(switch)
    service = webdriver.ChromeService(DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    width, height = request.param
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get((tmp_path / "index.html").as_uri())
    yield driver
    driver.quit()


def test_look_through_the_images(browser):
    def all_of(selector):
        return browser.find_elements("css selector", selector)

    def shows(selector):
        (element,) = all_of(selector)
        return element.is_displayed()

    def press(key):
        browser.switch_to.active_element.send_keys(key)

    overflow = "return document.documentElement.scrollWidth - innerWidth"
    assert browser.execute_script(overflow) <= 0
    assert not shows("dialog")
    all_of(".card button")[1].click()
    assert shows("dialog")
    assert all_of(".bar h2")[0].text == "second"
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('.picture img')].map(i => i.naturalWidth)"
    )
    assert sizes == [64, 64, 64]
    assert browser.execute_script(overflow) <= 0

    assert [shows(f".picture .{layer}") for layer in ("fill", "edges")] == [True, True]
    press("2")
    assert [shows(f".picture .{layer}") for layer in ("fill", "edges")] == [False, True]
    all_of("[data-view=image]")[0].click()
    assert [shows(f".picture .{layer}") for layer in ("fill", "edges")] == [False, False]
    press("1")

    rows = all_of(".legend button")
    assert rows[0].text.split("\n") == ["grass & </script>", "0.90", "38.2 %"]
    assert len(rows) == 4 and not shows(".box")
    rows[1].click()
    assert shows(".box")
    assert all_of(".labels")[0].is_displayed()
    press("n")
    assert not all_of(".labels")[0].is_displayed()

    press("\ue014")  # right
    assert all_of(".bar h2")[0].text == "third"
    press("\ue012")  # left
    press("\ue012")
    press("\ue012")  # there is none before the first
    assert all_of(".place")[0].text == "1 / 3"
    press("\ue00c")  # escape
    assert not shows("dialog")

    all_of(".search")[0].send_keys("THIRD dog")
    assert [card.is_displayed() for card in all_of(".card")] == [False, False, True]
    assert browser.get_log("browser") == []
