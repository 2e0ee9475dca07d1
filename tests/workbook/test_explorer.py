"""The explorer without browser and kernel: looks at a tiny run, the choices of a session, and the widget's messages."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from viral_core.measure.attention import spatial_entropies
from viral_core.measure.cknna import cknna
from viral_core.measure.pca import pca_map
from viral_core.run_folder import load_run
from workbook import explorer
from workbook.explorer import look as looks
from workbook.explorer.look import look

BLOCKS, HEADS, TOKENS = 4, 4, 4
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def session(run_folders, tiny, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    row = {"image": str(tmp_path / "a.png"), "question": "Where?", "prompt": "Where is the dog?", "answer": "left"}
    rows = {"pope_random": [row | {"id": "q0"}, row | {"id": "q1", "prompt": HOSTILE}], "mme": [row | {"id": "m0"}]}
    teachers = {"clip": {"kind": "clip", "path": str(tiny / "clip")}}
    return explorer.Session(run_folders, teachers, list(rows), rows.__getitem__, tmp_path / "out", k=2)


def maps(levels: dict, layers: int) -> np.ndarray:
    """(layers, N) values that `levels` sent."""
    values = np.frombuffer(levels["values"], np.uint8).reshape(layers, -1) / 255
    low, high = np.array(levels["low"]), np.array(levels["high"])
    return low[:, None] + values * (high - low)[:, None]


def test_a_look_is_what_the_measurements_of_the_same_states_say(run_folders, picture):
    run = load_run(run_folders["viral-s0"])
    seen = look(run, picture, "Where is the dog?")
    assert seen.states.shape == (BLOCKS + 1, TOKENS, 32)
    assert seen.attention.shape == (len(seen.tokens), BLOCKS, HEADS, TOKENS)
    cosines = looks.similarity(seen.states, 1)
    expected = torch.nn.functional.cosine_similarity(seen.states[2, 1], seen.states[2, 3], dim=0)
    assert cosines[2, 3] == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(cosines[:, 1], torch.ones(BLOCKS + 1))


def test_the_answer_is_greedy_and_its_probabilities_are_the_models(run_folders, picture):
    seen = look(load_run(run_folders["viral-s0"]), picture, "Where is the dog?")
    for text, probability, rivals in seen.tokens:
        assert (text, probability) == rivals[0]
        assert sum(p for _, p in rivals) <= 1


def test_the_logit_lens_of_the_last_layer_is_the_models_own_prediction(run_folders, picture):
    run = load_run(run_folders["viral-s0"])
    seen = look(run, picture, "Where is the dog?")
    logits = run.model.get_base_model().lm_head(seen.lens[-1])
    best = logits.softmax(-1).max(-1)
    assert torch.equal(best.indices, seen.words[-1, :, 0])
    assert torch.allclose(best.values, seen.probabilities[-1, :, 0], atol=1e-5)
    token = looks.first_token(run, "dogs")
    assert token == run.processor.tokenizer(" dogs", add_special_tokens=False)["input_ids"][0]
    lens = looks.word_map(run, seen, token)
    assert torch.allclose(lens[-1], logits.softmax(-1)[:, token], atol=1e-5)


def test_shuffled_patches_are_the_same_each_time_and_the_picture_shows_their_order(run_folders, picture):
    run = load_run(run_folders["baseline-s0"])
    plain, once, again = (look(run, picture, "Where?", permuted=p) for p in (False, True, True))
    assert torch.equal(once.states, again.states)
    assert torch.allclose(once.states[0], plain.states[0][torch.from_numpy(once.order)], atol=1e-5)
    straight, shuffled = (np.asarray(looks.shown(picture, seen, 28)) for seen in (plain, once))
    place = int(once.order[0])
    row, column = place // 2 * 14, place % 2 * 14
    assert np.array_equal(shuffled[:14, :14], straight[row : row + 14, column : column + 14])


def test_a_view_has_a_panel_for_encoder_teacher_and_each_run(session, run_folders, picture):
    view = session.view(replace(session.first(), patch=(1, 0)))
    assert [panel["title"] for panel in view["panels"]] == ["encoder", "clip", "baseline-s0", "viral-s0"]
    assert view["picture"].startswith(b"\x89PNG")
    assert (view["question"], view["key"]) == ("Where is the dog?", "left")
    for panel in view["panels"]:
        layers = panel["layers"]
        assert len(panel["pca"]) == layers * TOKENS * 3
        assert maps(panel["similarity"], layers)[:, 2] == pytest.approx(np.ones(layers), abs=1e-6)
    run = view["panels"][2]
    assert maps(run["lens"], BLOCKS + 1).max() <= 1
    assert (len(run["entropy"]), len(run["words"]), run["heads"]) == (BLOCKS, BLOCKS + 1, HEADS)
    assert set(run["curves"]) == {"encoder", "clip"}
    seen = look(load_run(run_folders["baseline-s0"]), picture, "Where is the dog?")
    assert run["curves"]["encoder"][3] == pytest.approx(float(cknna(seen.states[3], seen.features, 2)), rel=1e-4)
    entropy = float(spatial_entropies(seen.attention[0, 2].mean(0).reshape(2, 2)))
    assert run["entropy"][2] == (None if np.isnan(entropy) else pytest.approx(entropy))
    # The teacher is the encoder here, on the same pixels: nothing tells them apart.
    encoder, teacher = (np.frombuffer(panel["pca"], np.uint8).astype(int) for panel in view["panels"][:2])
    assert np.abs(encoder - teacher).max() <= 1


def test_the_lens_is_of_the_very_token_of_the_answer(session, run_folders, picture):
    run = load_run(run_folders["baseline-s0"])
    seen = look(run, picture, "Where is the dog?")
    text = [run.processor.tokenizer.decode([token]) for token in seen.ids]
    assert text == [word for word, *_ in seen.tokens]
    token = next(place for place, word in enumerate(text) if word.strip())
    panel = session.view(replace(session.first(), token=token))["panels"][2]
    assert panel["word"] == text[token]
    expected = looks.word_map(run, seen, seen.ids[token])
    assert maps(panel["lens"], BLOCKS + 1) == pytest.approx(expected.numpy(), abs=1 / 255)


def test_runs_of_one_width_share_their_colours_and_the_encoder_has_its_own(session, run_folders, picture):
    view = session.view(session.first())
    seen = look(load_run(run_folders["baseline-s0"]), picture, "Where is the dog?")
    alone = pca_map(torch.nn.functional.normalize(seen.features, dim=-1))
    colours = np.frombuffer(view["panels"][0]["pca"], np.uint8).reshape(2, 2, 3)
    assert np.abs(colours / 255 - alone).max() < 0.01
    twin = session.view(replace(session.first(), beside="baseline-s0"))["panels"][-1]
    assert twin["pca"] != view["panels"][2]["pca"]  # viral-s0 takes part in the basis


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"run": "elsewhere"}, "no run 'elsewhere'; there are: baseline-s0, viral-s0"),
        ({"teacher": "sam"}, "no teacher 'sam'; there are: clip"),
        ({"benchmark": "nothing"}, "no benchmark 'nothing'"),
        ({"row": "q9"}, "no question 'q9'; there are: q0, q1"),
        ({"image": "no/such.png"}, "no image no/such.png: give the path of a file"),
        ({"image": __file__}, "cannot read image .*test_explorer.py"),
        ({"question": "What is in <image>?"}, "the question holds <image>: leave it out"),
    ],
)
def test_what_cannot_be_shown_says_why(session, changes, error):
    with pytest.raises((ValueError, OSError), match=error):
        session.view(replace(session.first(), **changes))


def test_a_head_that_a_run_does_not_have_is_said_in_its_place(session):
    panel = session.view(replace(session.first(), head=7))["panels"][-1]
    assert panel["missing"] == "no head 7: 0 to 3"
    assert "attention" not in panel


def test_only_the_chosen_models_stay_loaded(session):
    session.view(session.first())
    session.view(replace(session.first(), run="viral-s0", beside="", teacher=""))
    assert set(session._models) == {("run", "viral-s0")}


def test_a_run_is_asked_once_while_the_sample_stays(session, monkeypatch):
    asked = []

    def counted(run, *sample):
        asked.append(run)
        return look(run, *sample)

    monkeypatch.setattr("workbook.explorer.session.look", counted)
    both = session.first()
    session.view(both)
    session.view(replace(both, patch=(1, 1), token=1))
    alone = session.view(replace(both, beside=""))
    assert len(asked) == 2
    assert session.view(both)["panels"][2]["lens"] == alone["panels"][2]["lens"]
    assert len(asked) == 3  # it had been left out
    session.view(replace(both, row="q1"))
    assert len(asked) == 5


def test_own_pictures_and_figures_lie_in_the_sessions_folder(session, picture):
    with pytest.raises(ValueError, match="no image"):
        session.upload(b"text")
    picture.save(session.folder.parent / "b.jpg")
    path = session.upload((session.folder.parent / "b.jpg").read_bytes())
    view = session.view(replace(session.first(), image=path, question="What?"))
    assert (view["question"], view["key"]) == ("What?", "")
    assert [session.save(b"1").name, session.save(b"2").name] == ["figure-001.png", "figure-002.png"]
    (session.folder / "figure-001.png").rename(session.folder / "figure-best.png")
    assert session.save(b"3").name == "figure-003.png"


def test_the_widget_shows_the_last_choice_and_says_what_is_wrong(session):
    pytest.importorskip("anywidget")
    from workbook.explorer.widget import Explorer

    shown = Explorer(session)
    assert shown.status["seconds"] >= 0
    before = shown.view
    shown.choice = {**shown.choice, "layer": 1}
    assert shown.view is before  # the browser has all layers
    shown.choice = {**shown.choice, "image": "no/such.png"}
    assert "no image no/such.png" in shown.status["error"]
    assert shown.view is before
    shown.choice = {**shown.choice, "image": ""}
    assert shown.status == {}
    shown.choice = {**shown.choice, "image": "", "benchmark": "mme"}
    assert (shown.choice["row"], shown.questions) == ("m0", [["m0", "Where?"]])
    shown.choice = {**shown.choice, "layer": "three"}
    assert "layer" in shown.status["error"]
    shown.choice = {**shown.choice, "layer": 0, "token": -1}
    assert "token" in shown.status["error"]
    shown._receive(None, {"kind": "image"}, [b"no image"])
    assert "no image that Pillow reads" in shown.status["error"]
    assert asdict(session.first()).keys() == shown.choice.keys()


def test_without_a_run_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="make repro PROFILE=smoke"):
        explorer.of_profile("smoke")
