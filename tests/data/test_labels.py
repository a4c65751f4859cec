"""Labels mean the same at every door, whatever they are written in, and which of two is 1 follows stated rules."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import entangle as en
from entangle.concepts import entanglement_report
from entangle.data import load_labelled, read_labels, same_index
from entangle.errors import EntangleError
from entangle.evaluation.methods.places import caa_places, iti_places
from entangle.probes import bag_of_words, three_way

N = 120
CODES = np.arange(N) % 3 % 2
FORMS = {
    "bools": CODES.astype(bool),
    "names": np.where(CODES, "rude", "polite"),
    "a list of names": np.where(CODES, "rude", "polite").tolist(),
    "objects": np.where(CODES, "rude", "polite").astype(object),
    "numbers as words": np.where(CODES, "10", "9").tolist(),
    "floats": CODES.astype(float),
    "1 and 2": CODES + 1,
    "-1 and 1": 2 * CODES - 1,
    "a tensor": torch.from_numpy(CODES),
    "a bool tensor": torch.from_numpy(CODES).bool(),
    "a bfloat16 tensor": torch.from_numpy(CODES).bfloat16(),
    "a list of tensors": list(torch.from_numpy(CODES)),
    "numpy bools in a list": list(CODES.astype(bool)),
    "a column": CODES[:, None],
    "a Series from 1000 on": pd.Series(CODES, index=range(1000, 1000 + N)),
    "a nullable Series": pd.Series(CODES.astype(bool), dtype="boolean"),
    "a Categorical": pd.Series(np.where(CODES, "rude", "polite"), dtype="category"),
    "an ordered Categorical": pd.Categorical(np.where(CODES, "a", "b"), categories=["b", "a"], ordered=True),
    "bytes": [b"rude" if code else b"polite" for code in CODES],
}


@pytest.fixture(scope="module")
def z() -> torch.Tensor:
    x = torch.randn(N, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    return x + torch.from_numpy(CODES)[:, None, None, None]


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_every_kind_say_the_same(form: str) -> None:
    read = read_labels(FORMS[form], N, two=True)
    assert read.codes.tolist() == CODES.tolist()
    assert read.rule


@pytest.mark.parametrize("form", FORMS)
def test_every_door_takes_every_kind_and_gives_what_it_gives_for_0_and_1(form: str, z: torch.Tensor) -> None:
    def fitted(labels: object) -> list[torch.Tensor]:
        grid = en.fit_probes(z, labels, n_permutations=0, progress=False)
        iti = en.ITI.fit(z, labels, top_k=2, direction="probe", grid=grid)
        added = en.AddDirection.mean_difference(z[:, 0].flatten(1), labels, "z", 0)
        erase = en.Erase.fit(z[:, 0], labels)
        rows = {"a": (z[:, 0, 0], labels), "b": (z[:, 1, 1], labels)}
        report = entanglement_report(torch.eye(2, 4), rows, estimator="mean_difference", n_resamples=20, n_splits=2)
        return [grid.directions, iti.directions, iti.sigmas, added.vector, erase.left @ erase.right, report.split_half]

    for got, wanted in zip(fitted(FORMS[form]), fitted(CODES), strict=True):
        torch.testing.assert_close(got, wanted)


def test_doors_that_want_texts_take_every_kind(z: torch.Tensor) -> None:
    texts = [f"{'never' if code else 'always'} a thing number {i}" for i, code in enumerate(CODES)]
    plain = en.LinearToxicityScorer.fit(texts, CODES)
    words = bag_of_words(texts, CODES, three_way(CODES), n_resamples=20)
    for labels in FORMS.values():
        assert en.LinearToxicityScorer.fit(texts, labels).weights.tolist() == plain.weights.tolist()
        assert bag_of_words(texts, labels, three_way(CODES), n_resamples=20).accuracy == words.accuracy


@pytest.mark.parametrize(
    ("zero", "one"),
    [
        ("no", "Yes"),
        ("9", "10"),
        (9, 10),
        ("nothate", "hate"),
        ("non-toxic", "Toxic"),
        ("not a joke", "joke"),
        ("good", "bad"),
        ("neutral", "Toxic"),
        ("safe", "unsafe"),
        ("unhelpful", "helpful"),
        ("negative", "positive"),
        ("False", "true"),
        ("ant", "Bee"),
        ("-1", "1"),
    ],
)
def test_which_of_two_is_one(zero: object, one: object) -> None:
    for labels in ([zero, one, zero], [one, zero, zero]):
        read = read_labels(labels, two=True)
        assert read.names[1] == str(one)
        assert read.codes.tolist() == [int(label == one) for label in labels]


@given(st.lists(st.sampled_from(["spam", "ham"]), min_size=2).filter(lambda x: len(set(x)) == 2))
def test_positive_turns_the_labels_round(labels: list[str]) -> None:
    by_rule, turned = read_labels(labels), read_labels(labels, positive="ham")
    assert by_rule.names == ("ham", "spam")
    assert turned.names == ("spam", "ham")
    assert (by_rule.codes + turned.codes == 1).all()


def test_positive_sets_one_class_against_the_rest_at_every_door(z: torch.Tensor) -> None:
    labels = np.array(["a", "b", "c"])[np.arange(N) % 3]
    wanted = (labels == "b").astype(int)
    grid = en.fit_probes(z, labels, positive="b", n_permutations=0, progress=False)
    assert (grid.labels.tolist(), list(grid.classes_)) == (wanted.tolist(), ["not b", "b"])
    iti = en.ITI.fit(z, labels, positive="b", top_k=2)
    torch.testing.assert_close(iti.directions, en.ITI.fit(z, wanted, top_k=2).directions)
    assert (iti.toward, iti.label_names) == (0, ("not b", "b"))
    with pytest.raises(EntangleError, match="labels have 3 values: 'a' \\(40\\), 'b' \\(40\\), 'c' \\(40\\)"):
        en.ITI.fit(z, labels, top_k=2)


def test_toward_is_a_label_or_the_number_of_its_class(z: torch.Tensor) -> None:
    names = np.where(CODES, "yes", "no")
    for label, number in (("yes", 1), ("no", 0)):
        by_name, by_number = (en.ITI.fit(z, names, top_k=2, toward=toward) for toward in (label, number))
        assert by_name.toward == by_number.toward == number
        torch.testing.assert_close(by_name.directions, by_number.directions)
    torch.testing.assert_close(
        en.ITI.fit(z, CODES + 1, top_k=1, toward=2).directions, -en.ITI.fit(z, CODES + 1, top_k=1, toward=1).directions
    )
    with pytest.raises(EntangleError, match="toward must be one of the labels 'no', 'yes', got 'maybe'"):
        en.ITI.fit(z, names, top_k=2, toward="maybe")


def test_an_edit_remembers_what_its_classes_were_called(z: torch.Tensor, tmp_path: object) -> None:
    iti = en.ITI.fit(z, np.where(CODES, "rude", "polite"), top_k=2)
    iti.save_pretrained(tmp_path)
    again = en.interventions.Edit.from_pretrained(tmp_path)
    assert again.label_names == iti.label_names == ("polite", "rude")


def test_an_oracle_erasure_is_given_labels_by_name(z: torch.Tensor) -> None:
    names, x = np.where(CODES, "rude", "polite"), z[:, 0, 0]
    by_name = en.interventions.OracleErase.fit(x, names).given(names[:5])
    by_number = en.interventions.OracleErase.fit(x, CODES).given(CODES[:5])
    torch.testing.assert_close(by_name(x[:5]), by_number(x[:5]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None, "b"], "missing .* at 1 of 3 examples, first at example 1"),
        (["a", " ", "b"], "missing .* first at example 1"),
        ([1.0, float("nan"), 0.0], "missing .* first at example 1"),
        (pd.Series([1, 0, None], dtype="Int64"), "missing .* first at example 2"),
        (pd.Series(["a", "b", None], dtype="category"), "missing .* first at example 2"),
        ([0, 1, "a"], "of one kind .*, not int, str"),
        (["Yes", "yes", "no"], "one class in several ways, 'Yes', 'yes'"),
        (["1", "1.0", "0"], "one number in several ways"),
        ([0.2, 0.9, 0.2], "continuous"),
        ([0, 1, float("inf")], "continuous or inf"),
        ([1, 1, 1], "only the label '1' \\(3 rows\\): two classes are needed"),
        ([0, 1, 2], "have 3 values"),
        ([[0, 1], [1, 0], [1, 0]], "one per example; got shape \\(3, 2\\)"),
        ([[0], [1, 0], [1]], "of one kind|one per example"),
        ({0, 1}, "not a set"),
        ("010", "not a str"),
        ([0, 1], "one for each of 3 examples"),
        (np.array(["2020-01-01"] * 3, dtype="datetime64[D]"), "names, bools or whole numbers"),
    ],
)
def test_labels_that_say_nothing_are_refused_in_one_line(labels: object, message: str) -> None:
    with pytest.raises(EntangleError, match=message) as caught:
        read_labels(labels, 3, two=True)
    assert "\n" not in str(caught.value)


def test_shuffled_columns_are_refused_and_columns_read_by_position_are_not(z: torch.Tensor) -> None:
    x = pd.DataFrame(z.flatten(1).numpy())
    labels = pd.Series(CODES)
    shuffled = labels.sample(frac=1, random_state=0)
    with pytest.raises(EntangleError, match="x and y have the same index in different orders"):
        en.fit_probes(x, shuffled, n_permutations=0, progress=False)
    same_index(x=x, y=labels.set_axis(range(1000, 1000 + N)))  # another index says nothing of the order
    grid = en.fit_probes(x.loc[shuffled.index], shuffled, n_permutations=0, progress=False)
    assert grid.labels.tolist() == shuffled.tolist()


def test_scikit_learn_keeps_its_own_order_of_classes(z: torch.Tensor) -> None:
    labels = np.where(CODES, "Yes", "no")
    assert en.LogisticProbe().fit(z[:, 0, 0].numpy(), labels).classes_.tolist() == ["Yes", "no"]
    assert en.fit_probes(z, labels, n_permutations=0, progress=False).classes_.tolist() == ["no", "Yes"]


def test_places_and_baselines_read_names(z: torch.Tensor) -> None:
    class Acts:
        sites = ("z", "resid_post")
        fingerprint = None

        def layers(self, site: str) -> list[int]:
            return [0, 1]

        def __getitem__(self, site: str) -> torch.Tensor:
            return z if site == "z" else z.flatten(2)

    names = np.where(CODES, "rude", "polite")
    for make in (lambda y: iti_places(Acts(), y, top_k=[2])["ITI 2 heads"].directions,
                 lambda y: caa_places(Acts(), y)["CAA layer 0"].vector,
                 lambda y: en.evaluation.baseline_methods(Acts(), y, top_k=2)["CAA"].vector):  # fmt: skip
        torch.testing.assert_close(make(names), make(CODES))


def test_a_report_and_a_scorer_say_which_label_is_one(z: torch.Tensor) -> None:
    names = np.where(CODES, "rude", "polite")
    rows = {"a": (z[:, 0, 0], names), "b": (z[:, 1, 1], CODES)}
    report = entanglement_report(torch.eye(2, 4), rows, estimator="mean_difference", n_resamples=20, n_splits=2)
    assert report.settings["positive"] == {"a": "rude", "b": "1"}
    texts = [f"{'never' if code else 'always'} number {i}" for i, code in enumerate(CODES)]
    assert en.LinearToxicityScorer.fit(texts, names).report["positive"] == "rude"
    assert en.LinearToxicityScorer.fit(texts, names, positive="polite").report["positive"] == "polite"


def test_a_file_says_which_label_is_one_and_why(tmp_path: object) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\none,nothate\ntwo,hate\n")
    data = load_labelled(path)
    assert (data.positive, data.label_names, data.labels.tolist()) == ("hate", ("nothate", "hate"), [0, 1])
    assert "'nothate' says that it is not there" in data.rule
    assert load_labelled(path, positive="nothate").labels.tolist() == [1, 0]
