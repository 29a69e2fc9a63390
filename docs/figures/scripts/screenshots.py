"""Take the screenshots page-report, page-predictions, page-leaderboard and page-serve.webp of docs/guides.

    python docs/figures/scripts/screenshots.py CLASSIFIER DETECTOR IMAGES RUNS

CLASSIFIER is a run of this command, a minute on two cores, on the crops of explain.py, with the convolutions of VGG-16
in FILE. DETECTOR is a run on voc-animals; faster_rcnn.py contains its command and time. IMAGES is a folder of
photographs, such as some of the validation split of voc-animals:

    fukami train vgg16 --data crops --init FILE --size 128 --freeze --out CLASSIFIER

RUNS is a folder of runs, here of these commands, 4 minutes on two cores, with MNIST in $FUKAMI_DATA:

    fukami train deep-convnet --data mnist --epochs 3 --out RUNS/deep-convnet
    fukami train deep-convnet --data mnist --epochs 3 --seed 1 --out RUNS/seed-1
    fukami train deep-convnet --data mnist --epochs 3 --lr 0.0005 --out RUNS/low-lr
    fukami train deep-convnet --data mnist --epochs 3 --augment --out RUNS/no-augmentation

It needs the browser chromium and the extra serve.
"""

import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from images import create_parser, save_image
from PIL import Image
from playwright.sync_api import Page, sync_playwright

VIEWPORT = {"width": 1440, "height": 1200}  # pixels; the text of a page is 992 wide, in the middle
CLIP_WIDTH = 1000
MAX_BYTES = 150_000
FUKAMI = (sys.executable, "-m", "fukami")


def capture(tab: Page, path: Path, *, first: str = "h1", last: str, max_height: int) -> None:
    """Capture a page from the top of the element ``first`` to the bottom of ``last``, at most ``max_height`` pixels."""
    tab.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    tab.wait_for_function("[...document.images].every(image => image.complete)")
    top, bottom = (tab.locator(selector).first.bounding_box() for selector in (first, last))
    start = max(0.0, top["y"] - 16)
    height = min(bottom["y"] + bottom["height"] + 16 - start, max_height)
    clip = {"x": (VIEWPORT["width"] - CLIP_WIDTH) / 2, "y": start, "width": CLIP_WIDTH, "height": height}
    with Image.open(io.BytesIO(tab.screenshot(full_page=True, clip=clip))) as image:
        save_image(image, path, MAX_BYTES)


@contextmanager
def serve(run: Path) -> Iterator[str]:
    """Serve a run on a free port, and return the address."""
    command = [*FUKAMI, "serve", run.name, "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(command, cwd=run.parent, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        address = next(match[0] for line in server.stderr if (match := re.search(r"http://[\w.:]+", line)))
        yield address
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Open each page in light mode and capture it."""
    parser = create_parser(__doc__)
    for name in ("classifier", "detector", "images", "runs"):
        parser.add_argument(name, type=lambda text: Path(text).resolve())
    options = parser.parse_args()
    photographs = sorted(path for path in options.images.iterdir() if path.suffix in (".jpg", ".png"))
    executable = shutil.which("chromium")
    if executable is None:
        sys.exit("the browser chromium is missing; install it")
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"]) as browser,
        browser.new_page(viewport=VIEWPORT, color_scheme="light") as tab,
    ):
        tab.goto((options.classifier / "report.html").as_uri())
        capture(tab, options.out / "page-report.webp", last="h2:text-is('Training curves') + div", max_height=1178)

        predictions = Path(folder) / "predictions"
        command = [*FUKAMI, "predict", str(options.classifier), options.images.name, "--out", str(predictions)]
        subprocess.run([*command, "--device", "cpu"], cwd=options.images.parent, check=True, stdout=subprocess.DEVNULL)
        tab.goto((predictions / "index.html").as_uri())
        capture(tab, options.out / "page-predictions.webp", last=".grid", max_height=860)

        board = Path(folder) / "board.html"
        command = [*FUKAMI, "board", options.runs.name, "--out", str(board)]
        subprocess.run(command, cwd=options.runs.parent, check=True, stdout=subprocess.DEVNULL)
        tab.goto(board.as_uri())
        capture(tab, options.out / "page-leaderboard.webp", last="h3:text-is('Cost') + div", max_height=900)

        with serve(options.detector) as address:
            tab.goto(address)
            with tab.expect_navigation():
                tab.locator("[type=file]").set_input_files(photographs[0])
            capture(tab, options.out / "page-serve.webp", last="details", max_height=1300)


if __name__ == "__main__":
    main()
