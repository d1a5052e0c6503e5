"""The page: a workbench with the picture on the left, what the model says of it on the right."""

import functools
import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from answers import (
    classify,
    draw_foretold,
    draw_reconstruction,
    draw_texture,
    grid_of,
    overlay,
    rebuild,
    seen_by,
    surprise_map,
    texture,
)
from features import compared
from model_card import how_good, on_whom
from opened_models import Model, Offered, opened
from PIL import Image
from speckle_examples import example_files

CAVEAT = "**For research only.** This is not a medical device and must not be used for diagnosis."
WELCOME = (
    "<h2>Drop an image, or take an example</h2><p>A classifier then says what it sees, how sure it is, and how good it "
    "was on which images. An autoencoder shows what it rebuilds where the image is hidden, the texture of any patch "
    "that you click, and where the texture is not what its surroundings foretell.</p>"
    "<p>The examples are generated speckle, of no patient: what a classifier of patients says of them means "
    "nothing.</p>"
)
WORKING = (
    '<p class="working">Looking at the image. A model that is opened for the first time takes up to half a minute.</p>'
)
FAILED = "<p>No answer: the message says why. Choose another file or model, or give the same file again.</p>"
# Of the system: every glyph and weight is there, and nothing is asked of another host.
LOOK = {
    "theme": gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("system-ui", "sans-serif")),
    "css_paths": Path(__file__).with_name("style.css"),
    # Nothing stays in sight in what hides its overflow; style.css reaches only what is within this.
    "head": "<style>.gradio-container { overflow: clip !important }</style>",
}


def _shown_errors(function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*args):
        try:
            return function(*args)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return call


def _kept(picture: Image.Image, cache: str) -> str:
    """A PNG file in gradio's cache. Gradio would write it anew while it sends the same file to another visitor."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    file = Path(cache) / hashlib.sha256(data.getvalue()).hexdigest() / "image.png"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
            part.write(data.getvalue())
        os.replace(part.name, file)
    return str(file)


def in_words(model: Model, image: Image.Image) -> tuple[dict[str, float] | None, str]:
    """Probabilities, `None` without a classifier; how sure, how good and on whom, in Markdown."""
    probabilities, said = None, []
    if model.classifier is not None:
        probabilities, answer, sure = classify(model, image)
        said.append(f"**How sure:** {sure}")
        said.append(f"**How good:** {how_good(model.card, list(probabilities), answer)}")
    whom = on_whom(model.card, model.trained_on)
    said.append(f"**On whom:** {whom or 'The model does not tell'}. Of other images its answers mean little.")
    return probabilities, "\n\n".join(said)


def panels(model: Model, image: Image.Image, mask_ratio: float, seed: int, down: float, right: float) -> tuple:
    """What the page shows: input, probabilities, words, reconstruction, matrices, those of the head, features."""
    probabilities, words = in_words(model, image)
    network = model.autoencoder
    if network is None:
        return seen_by(model.classifier, image, None), probabilities, words, "", "", "", []
    rebuilt = rebuild(network, image, mask_ratio, int(seed), down, right)
    squares = {part: rebuilt.patch.of(rebuilt.parts[part]) for part in ("original", "reconstruction")}
    counts, features = zip(*(texture(network, square) for square in squares.values()), strict=True)
    return (
        seen_by(network, image, rebuilt.patch),
        probabilities,
        words,
        draw_reconstruction(network, rebuilt),
        draw_texture(network, squares, list(counts)),
        "" if rebuilt.foretold is None else draw_foretold(network, rebuilt),
        compared(*features),
    )


def build(offered: Offered) -> gr.Blocks:
    """The page."""
    model = offered.open(offered.names[0])
    # As in the training, within the slider's range. Read before the first answer, which sets it.
    trained = 0.75 if model.autoencoder is None else min(max(model.autoencoder.model.config.mask_ratio, 0.1), 0.95)
    # A first answer takes two seconds more than later ones: nobody shall wait for it.
    panels(model, Image.new("RGB", (64, 64)), trained, 0, 50, 50)

    def answer(model, image, mask_ratio, seed, down, right):
        if image is None:
            return gr.skip()
        model, image, window = opened(offered, model, image)
        shown = panels(model, image, mask_ratio, seed, down, right)
        parts = dict(zip((seen, label, words, rebuilt, matrices, foretold, table), shown, strict=True))
        parts |= {
            seen: _kept(shown[0], seen.GRADIO_CACHE),
            note: f"{model.note} {window}".strip(),
            results: model.card.results,
            waiting: gr.Column(visible=False),
            warning: model.card.warning,
            warned: gr.Column(visible=bool(model.card.warning)),
        }
        parts |= {part: gr.Column(visible=True) for part in (given, answered)}
        parts |= {part: gr.update(visible=model.classifier is not None) for part in (classified, sensed)}
        rebuilding = (patching, reconstructed, patched, featured)
        parts |= {part: gr.update(visible=model.autoencoder is not None) for part in rebuilding}
        return parts | {surprised: gr.Tab(visible=bool(parts[foretold]))}

    def choose(model, image, mask_ratio, seed, clicked: gr.SelectData):
        found, picture, _ = opened(offered, model, image)
        network = found.autoencoder
        if network is None:
            return gr.skip()
        rows, columns = grid_of(network, network.pixels(picture))
        width, height = seen_by(network, picture, None).size
        across, below = (
            round(100 * (min(int(at * number / side), number - 1) + 0.5) / number)  # the middle of the patch
            for at, number, side in zip(clicked.index, (columns, rows), (width, height), strict=True)
        )
        return {down: below, right: across} | answer(model, image, mask_ratio, seed, below, across)

    def clear(image):
        parts = {state: WELCOME if image is None else WORKING, waiting: gr.Column(visible=True)}
        parts |= {
            examples: gr.Row(visible=image is None),
            **{part: gr.Column(visible=False) for part in (given, answered)},
        }
        return parts | dict.fromkeys((note, heat, meaning, surprises, caveat), "")

    def explain(model, image):
        found, pixels, _ = opened(offered, model, image)
        if found.classifier is None:
            raise ValueError(f"{model} has no classifier to explain")
        return overlay(found.classifier, pixels)

    def foretell(model, image):
        found, pixels, _ = opened(offered, model, image)
        if found.autoencoder is None:
            raise ValueError(f"{model} has no autoencoder that could foretell a texture")
        return surprise_map(found.autoencoder, pixels)

    with gr.Blocks(title="GLCM-MAE", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(f"# GLCM-MAE\n\n{CAVEAT}", elem_id="head")
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_id="picture"):
                name = gr.Dropdown(
                    offered.names,
                    value=offered.names[0],
                    label="Model, or the Hub id of another one" if offered.any_public else "Model",
                    allow_custom_value=True,  # what is not offered is refused in our words
                )
                path = gr.File(
                    label="Image or DICOM file (its first frame)", type="filepath", height=96, elem_id="file"
                )
                with gr.Column(visible=False) as given:
                    seen = gr.Image(  # label and buttons would lie over it
                        label="What the model sees",
                        alt_text="What the model sees",
                        show_label=False,
                        buttons=[],
                        elem_id="seen",
                    )
                    with gr.Column(visible=False) as patching:
                        gr.Markdown("Click the picture to choose a patch, or move it here:")
                        with gr.Row(elem_id="move"):
                            down = gr.Slider(0, 100, 50, step=1, label="Down, %", min_width=160, buttons=[])
                            right = gr.Slider(0, 100, 50, step=1, label="Right, %", min_width=160, buttons=[])
            with gr.Column(scale=4, min_width=300):
                with gr.Column() as waiting:
                    state = gr.HTML(WELCOME)
                    with gr.Row(elem_id="examples") as examples:
                        taken = {
                            gr.Button(shown, icon=file, min_width=140): str(file)
                            for shown, file in example_files().items()
                        }
                with gr.Column(visible=False) as answered:
                    with gr.Column(visible=False) as warned:
                        warning = gr.Markdown(label="Warning")
                    with gr.Row():
                        with gr.Column(scale=2, min_width=260, visible=False) as classified:
                            label = gr.Label(label="Class probabilities", show_heading=True)
                        with gr.Column(scale=3, min_width=260):
                            words = gr.Markdown(label="Answer in words")
                            note = gr.Markdown(label="Note", elem_id="note")
                    with gr.Tabs():
                        with gr.Tab("Reconstruction", visible=False) as reconstructed:
                            with gr.Row():
                                mask_ratio = gr.Slider(0.1, 0.95, trained, step=0.01, label="Mask ratio", min_width=160)
                                seed = gr.Slider(0, 99, 0, step=1, label="Seed of the mask", min_width=160)
                            rebuilt = gr.HTML(label="Reconstruction")
                        with gr.Tab("Patch", visible=False) as patched:
                            gr.Markdown("Always a hidden patch: what is visible is not learned.")
                            matrices = gr.HTML(label="Patch and matrices")
                        with gr.Tab("Features", visible=False) as featured:
                            gr.Markdown(
                                "The 25 texture features of the chosen patch, the most changed first. Change: in per "
                                "cent of the larger value."
                            )
                            table = gr.Dataframe(
                                headers=["feature", "original", "rebuilt", "change"],
                                label="Features",
                                show_label=False,
                                interactive=False,
                                column_widths=["43%", "19%", "19%", "19%"],
                                elem_id="features",
                                wrap=True,
                                max_height=2000,  # all of it: no scrolling within the page
                            )
                        with gr.Tab("Surprise map", visible=False) as surprised:
                            foretold = gr.HTML(label="Foretold matrix")
                            surprising = gr.Button("Where is the texture surprising? (slower)", size="sm")
                            surprises, caveat = gr.HTML(label="Surprise map"), gr.Markdown(label="Caveat")
                        with gr.Tab("Sensitivity", visible=False) as sensed:
                            sensitive = gr.Button("Where is the model sensitive? (slower)", size="sm")
                            heat, meaning = gr.HTML(label="Sensitivity"), gr.Markdown(label="Meaning")
                        with gr.Tab("Results on its card"):
                            results = gr.Markdown(label="Results", elem_id="results")
        inputs = [name, path, mask_ratio, seed, down, right]
        parts = [warned, classified, patching, reconstructed, patched, featured, sensed, surprised]
        values = [seen, label, words, note, rebuilt, matrices, foretold, table, results, warning]
        outputs = [*values, waiting, given, answered, *parts]
        # A new image or model: nothing of the former one may stay, whatever becomes of the new.
        hidden = {"api_visibility": "private"}
        left = [note, state, waiting, examples, given, answered, heat, meaning, surprises, caveat]
        for change, api in ((path.change, {"api_name": "answer"}), (name.change, hidden)):
            cleared = change(clear, path, left, queue=False, show_progress="hidden", **hidden)
            # Hidden: the page has its own wheel, over which gradio's would lie.
            asked = cleared.then(
                _shown_errors(answer), inputs, outputs, concurrency_limit=2, show_progress="hidden", **api
            )
            asked.failure(lambda: FAILED, None, state, queue=False, **hidden)
        for button, file in taken.items():
            button.click(lambda file=file: file, None, path, **hidden)
        for slider in (mask_ratio, seed, down, right):
            # Not `release`, which a keyboard does not do. While an answer is on its way, only the last position waits.
            slider.input(
                _shown_errors(answer),
                inputs,
                outputs,
                concurrency_limit=2,
                trigger_mode="always_last",
                show_progress="minimal",
                **hidden,
            )
        seen.select(
            _shown_errors(choose),
            inputs[:4],
            [down, right, *outputs],
            concurrency_limit=2,
            trigger_mode="always_last",
            show_progress="minimal",
            **hidden,
        )
        sensitive.click(_shown_errors(explain), [name, path], [heat, meaning], api_name="overlay", concurrency_limit=1)
        surprising.click(
            _shown_errors(foretell), [name, path], [surprises, caveat], api_name="surprise", concurrency_limit=1
        )
    return page.queue(max_size=64)
