"""What an experiment leaves for readers and for other programs."""

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nufed.common.config import RunConfig
from nufed.common.errors import RunError
from nufed.deploy.commands.cli import main
from nufed.deploy.experiments.comparison import compare
from nufed.deploy.experiments.hypotheses import Graded
from nufed.deploy.experiments.report import write_report
from nufed.deploy.experiments.report_documents import merged, page_of, with_section, with_stories
from nufed.deploy.experiments.report_markdown import markdown_report, markdown_table
from nufed.deploy.experiments.report_tables import (
    TextTable,
    clients_table,
    left_out_clients,
    matrix_table,
    settings_table,
    target_table,
)
from nufed.deploy.experiments.side_by_side import side_by_side
from nufed.deploy.experiments.statistics import Interval
from nufed.deploy.experiments.story import Story, read_story
from nufed.deploy.experiments.tables import client_rows, result_rows, round_rows, write_tables
from nufed.deploy.experiments.tuning import Choice, Scored
from nufed.deploy.experiments.wording import difference, estimate, number
from nufed.server.client_curves import ClientCurves
from tests.deploy.experiments.made_runs import LABELS, NUM_STEPS, OPTIONS, made_comparison, made_run

CURVES = {
    "fedavg": [0.60, 0.65, 0.70, 0.72, 0.73, 0.74, 0.74],
    "per-fedavg": [0.40, 0.78, 0.80, 0.81, 0.81, 0.82, 0.82],
    "meta-2": [0.30, 0.70, 0.86, 0.87, 0.88, 0.88, 0.88],
    "fo-2": [0.50, 0.75, 0.79, 0.80, 0.80, 0.80, 0.80],
}
PROGRESS = {name: [0.1, 0.4, 0.6, curve[2]] for name, curve in CURVES.items()}


def story(**changes):
    main_setting = Graded("strong", 1.0, made_comparison(CURVES, progress=PROGRESS))
    weak = Graded("weak", 0.5, made_comparison(CURVES, progress=PROGRESS))
    point = {"method.local-lr": 0.3}
    choice = Choice("meta-2", RunConfig(), (Scored(point, 0.8), Scored({"method.local-lr": 0.1}, 0.7)), point, ())
    options = {"title": "A <title>", "about": "What & why", "choices": {"meta-2": choice}, "diverged": {}}
    record = {"command": "nufed experiment own", "processor": "P", "torch": "2", "flwr": "1", "final_run_seconds": 60.0}
    return Story(**{"settings": [weak, main_setting], "record": record, **options, **changes})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(story(), path)
    return path


def test_a_report_is_one_page_that_needs_nothing_from_anywhere(page):
    text = page.read_text(encoding="utf-8")

    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)[^"']+""", text)
    assert "@import" not in text
    assert "url(http" not in text
    assert text.count("<svg ") == 7
    assert "A &lt;title&gt;" in text


def test_the_verdict_comes_before_every_figure_and_table(page):
    text = page.read_text(encoding="utf-8")

    assert text.index("has the best accuracy") < min(text.index("<svg "), text.index("<table"))


def test_the_contents_lead_to_every_section(page):
    text = page.read_text(encoding="utf-8")

    links, places = re.findall(r"href='#([^']+)'", text), re.findall(r"<section id='([^']+)'", text)

    assert links == places
    assert len(set(places)) == len(places) > 8


def test_a_report_explains_its_words_before_the_second_verdict(page):
    text = page.read_text(encoding="utf-8")

    first, second = (match.start() for match in re.finditer("<p class=lead>", text))
    for word in ("FO(ν): first order", "Holm: p-values"):
        assert first < text.index(word) < second
        assert word in markdown_report(story())


def test_figures_and_page_follow_the_readers_theme(page):
    text = page.read_text(encoding="utf-8")

    used = set(re.findall(r"var\(--([a-z]+)", text))
    light, dark = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)
    assert used <= set(re.findall(r"--([a-z]+):", light))
    assert used <= set(re.findall(r"--([a-z]+):", dark))
    figures = "".join(re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL))
    assert not re.search(r"(?:fill|stroke): #(?:000000|ffffff|e6e6e6)", figures)
    plain = (page.parent / "report-figures" / "clients.svg").read_text(encoding="utf-8")
    assert "var(" not in plain  # a file by itself has no style sheet


def test_tables_that_a_telephone_cuts_say_so(page):
    text = page.read_text(encoding="utf-8")

    for hint, table in re.findall(r"(<p class='hint[^>]*>[^<]*</p>)?<div class=scroll[^>]*>(.*?)</table>", text):
        columns = table.count("<th ")
        assert (f"{columns} columns: scroll sideways" in hint) == (columns > 4)


def test_the_figures_lie_beside_the_page_as_svg_and_png(page):
    names = {path.name for path in (page.parent / "report-figures").iterdir()}

    assert {"adaptation-new.svg", "adaptation-new.png", "progress-bytes.png", "differences.svg"} <= names


def test_equal_results_give_an_equal_page(page, tmp_path):
    write_report(story(), tmp_path / "report.html")

    assert (tmp_path / "report.html").read_bytes() == page.read_bytes()


def test_a_report_without_progress_and_with_one_seed_is_complete_as_well(tmp_path):
    single = Graded("", 0.0, made_comparison({"fedavg": CURVES["fedavg"]}, seeds=1))

    write_report(story(settings=[single], choices={}), tmp_path / "report.html")

    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "New clients after 2 steps: accuracy 70" in text
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)


def test_the_matrix_marks_the_best_of_each_column():
    table = matrix_table(made_comparison(CURVES), "new")

    assert [row[0] for row in table.rows] == ["ν = 0", "ν = 1", "ν = 2"]
    assert table.shades[0, 1] == 1  # FedAvg before adaptation
    assert table.shades[1, 2] == 1  # ν = 1 after one step
    assert table.shades[2, 3] == 1  # ν = 2 after two


def test_options_are_told_apart_into_those_that_differ_and_those_in_common():
    comparison = made_comparison({name: CURVES[name] for name in ("fedavg", "per-fedavg")})
    configs = {name: runs[0].config for name, runs in comparison.runs.items()}

    different, shared = settings_table(configs, comparison.labels)

    assert different.header == ["method", "method.num-inner-steps"]
    assert ["federation.num-rounds", "0"] in shared.rows


def test_markdown_escapes_what_would_break_a_table():
    text = markdown_table(TextTable(["a|b"], [["c"]], frozenset({0})))

    assert text == "| a\\|b |\n| --- |\n| **c** |"


def test_markdown_tells_the_verdict_of_every_setting():
    text = markdown_report(story())

    assert "Setting `weak`" in text
    assert text.count("New clients after 2 steps") == 2
    assert "| H1 |" in text


def test_markdown_gives_every_verdict_with_its_intervals():
    told = story()

    text = markdown_report(told)

    (finding,) = [each for each in told.findings if each.name == "H1"]
    assert finding.evidence
    for name, corrected in finding.evidence.items():
        assert f"{name}: {100 * corrected.interval.mean:+.1f} points [" in text


def test_targets_are_shown_with_the_value_that_counts():
    header = target_table(made_comparison(CURVES, progress=PROGRESS)).header

    assert header[1].startswith("rounds to 6")
    assert "90 % of FedAvg + fine-tuning" in header[1]


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (number(0.8731, "accuracy"), "87.3 %"),
        (number(float("nan"), "loss"), "diverged"),
        (estimate(Interval(0.5, 0.4, 0.6, 5), "accuracy"), "50.0 ± 10.0 %"),
        (estimate(Interval(0.5, float("-inf"), float("inf"), 1), "accuracy"), "50.0 %"),
        (estimate(Interval(0.98, 0.94, 1.02, 5), "accuracy"), "98.0 % [94.0, 100.0]"),
        (estimate(Interval(0.5, -0.7, 1.7, 3, least=0.1, most=0.9), "accuracy"), "50.0 % (seeds 10.0 to 90.0)"),
        (estimate(Interval(0.5, -0.7, 1.7, 3, least=0.1, most=0.9), "loss"), "0.5 (seeds 0.1 to 0.9)"),
        (
            difference(Interval(0.1, -1.3, 1.5, 3, least=-0.1, most=0.4), "accuracy"),
            "+10.0 points (seeds -10.0 to +40.0)",
        ),
        (difference(Interval(0.3, -0.7, 1.3, 3), "accuracy"), "+30.0 points [-70.0, 100.0]"),
        (difference(Interval(-0.02, -0.05, 0.01, 5), "accuracy"), "-2.0 points [-5.0, 1.0]"),
        (difference(Interval(0.12, 0.02, 0.22, 5), "loss"), "+0.120 [0.020, 0.220]"),
    ],
)
def test_numbers_are_worded_alike_everywhere(shown, text):
    assert shown == text


def test_tables_are_tidy_and_agree_with_the_runs(tmp_path):
    run = made_run("meta-2", 3, CURVES["meta-2"], progress=[0.1, 0.5], config=OPTIONS["meta-2"])

    write_tables(tmp_path, [run], story().choices)

    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["group"] == "new" and row["s"] == "2"]
    assert len(rows) == 1
    assert float(rows[0]["accuracy"]) == pytest.approx(0.86)
    assert float(rows[0]["worst_decile"]) == pytest.approx(0.84)
    assert len(list(result_rows(run))) == 2 * (NUM_STEPS + 1)
    assert len(list(round_rows(run))) == 2 * (NUM_STEPS + 1)
    assert len(list(client_rows(run))) == 2 * 4 * (NUM_STEPS + 1)
    for name in ("results", "rounds", "clients", "tuning"):
        assert (tmp_path / f"{name}.parquet").is_file()
        assert (tmp_path / f"{name}.csv").is_file()


def test_tables_do_without_pyarrow_as_csv_alone(tmp_path, monkeypatch):
    """It is an extra, and a suite that ran for hours must not end without tables for want of it."""
    monkeypatch.setattr("nufed.deploy.experiments.tables.has_parquet", lambda: False)
    run = made_run("meta-2", 3, CURVES["meta-2"], config=OPTIONS["meta-2"])

    write_tables(tmp_path, [run], {})

    assert {path.name for path in tmp_path.iterdir()} == {"results.csv", "clients.csv"}


def test_regression_has_no_columns_of_accuracy():
    run = made_run("meta-2", 0, np.ones(NUM_STEPS + 1), loss=True)

    assert "accuracy" not in next(iter(result_rows(run)))


def test_a_folder_that_is_neither_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"an experiment or of a run at .*, but it holds neither"):
        read_story(tmp_path)
    (tmp_path / "cells").mkdir()
    with pytest.raises(RunError, match="runs are left"):
        read_story(tmp_path)


def test_a_single_run_has_a_report(tmp_path, capsys):
    options = ["--rounds", "2", "--clients", "4", "--new-clients", "2", "--set", "evaluation.interval=1"]
    assert main(["simulate", "--quiet", "--out", str(tmp_path), *options]) == 0
    folder = next(tmp_path.iterdir())
    capsys.readouterr()

    code = main(["report", str(folder), "--markdown", str(tmp_path / "run.md")])

    assert code == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "New clients after 5 steps: accuracy" in text
    assert "<h1>Run run: ν = 3, exact, on digits (classes)</h1>" in text
    assert "One run. Nothing here says" in text
    assert "Holm" not in text
    assert len(set(re.findall(r"<tr><td>([^<]+)</td><td>(?:new|participating)</td>", text))) == 6
    assert "## Run run: ν = 3" in (tmp_path / "run.md").read_text(encoding="utf-8")
    shutil.copytree(folder, tmp_path / "again")
    assert main(["report", str(folder), str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "comparison.html")
    compared = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "<h1>2 runs side by side, on digits (classes)</h1>" in compared
    assert "New clients after 5 steps: no verdict, for which 3 seeds are needed." in compared
    for damage in ("[]", "[" * 100_000, '{"status": "complete"}', '{"status": "complete", "rounds": [], "seconds": 0}'):
        (folder / "summary.json").write_text(damage, encoding="utf-8")
        assert main(["report", str(folder), "--force"]) == RunError.exit_code
        assert capsys.readouterr().err.startswith("nufed: Expected ")


def test_of_many_clients_a_single_run_shows_the_worst_and_a_few_of_the_best():
    run = made_run("meta-2", 0, CURVES["meta-2"], clients=60)
    for group, table in run.groups.items():
        curves = [
            ClientCurves(client_id=name, group=group, num_support=9, num_test=9, test_loss=row, test_accuracy=row)
            for name, row in zip(table.client_ids, map(tuple, table.measures["accuracy"]), strict=True)
        ]
        run = replace(run, groups={**run.groups, group: replace(table, clients=tuple(curves))})
    comparison = compare([run], LABELS)

    rows = clients_table(comparison).rows

    assert [len(rows), rows[0][0], rows[-1][0]] == [50, "client-0", "client-59"]
    assert left_out_clients(comparison) == "Of 120 clients the 40 worst and the 10 best; all are in clients.csv."


def test_runs_that_differ_in_the_seed_alone_are_one_method_and_others_are_named_by_what_differs():
    options = [{"method.num-inner-steps": 0}, {"method.num-inner-steps": 2}, {"method.num-inner-steps": 2}]
    runs = [
        made_run("run", seed, CURVES["meta-2"], config=option) for seed, option in zip((0, 0, 1), options, strict=True)
    ]
    longer = made_run("run", 0, CURVES["meta-2"], config={**options[1], "method.inner-lr": 0.7})

    sides = side_by_side([*runs, longer])

    assert [run.method for run in sides.runs] == [
        "FedAvg (ν = 0), inner-lr = 0.05",
        "ν = 2, exact, inner-lr = 0.05",
        "ν = 2, exact, inner-lr = 0.05",
        "ν = 2, exact, inner-lr = 0.7",
    ]
    again = replace(runs[1], folder=Path("again"))
    assert {run.method for run in side_by_side([runs[1], again]).runs} == {
        "ν = 2, exact (nowhere)",
        "ν = 2, exact (again)",
    }
    for option, complaint in (
        ({"data.num-clients": 7}, "data.num-clients is 20 in nowhere and 7"),
        ({"evaluation.primary-step": 3}, "evaluation.primary-step is 2"),
    ):
        with pytest.raises(RunError, match=complaint):
            side_by_side([runs[0], made_run("run", 0, CURVES["meta-2"], config=option)])
    with pytest.raises(RunError, match="by accuracy and nowhere by loss"):
        side_by_side([runs[0], made_run("run", 0, CURVES["meta-2"], loss=True)])


def test_a_document_keeps_what_was_written_around_a_section():
    document = with_section("# Title\n\nBy hand.\n", "own", "first")

    again = with_section(f"{document}\nAfter.\n", "own", "second")

    assert again == "# Title\n\nBy hand.\n\n<!-- begin own -->\nsecond\n<!-- end own -->\n\nAfter.\n"
    with pytest.raises(RunError, match="<!-- end own -->"):
        with_section("<!-- begin own -->", "own", "text")


SUMMARY, ONE, TWO = Path("docs/results.md"), Path("docs/results/one.md"), Path("docs/results/two.md")
PAGES = {"one": ONE, "two": TWO}


def test_each_suite_has_a_page_beside_the_summary_whose_overview_keeps_the_rows_of_the_others():
    first = with_stories({SUMMARY: "# Results\n", ONE: "", TWO: ""}, SUMMARY, {"one": story(), "two": story()}, PAGES)
    by_hand = {**first, ONE: first[ONE].replace("<!-- begin one -->", "By hand.\n\n<!-- begin one -->")}

    again = with_stories(
        {SUMMARY: by_hand[SUMMARY], ONE: by_hand[ONE]}, SUMMARY, {"one": story(title="Newer")}, {"one": ONE}
    )

    assert {*first} == {SUMMARY, ONE, TWO}
    assert "| suite | seeds | best | H1 | H2 | H3a | H3b | H4 | H5 |" in first[SUMMARY]
    assert (
        "| [one](results/one.md) | 5 | ν = 2: 86.2 ± 2.8 %, new, 2 steps | supported | supported | " in first[SUMMARY]
    )
    assert first[TWO].startswith(
        "# two\n\nOne of the suites of [results](../results.md).\n\n<!-- begin two -->\n## A <title>"
    )
    assert again[SUMMARY] == first[SUMMARY]
    assert again[ONE] == by_hand[ONE].replace("## A <title>", "## Newer")
    assert {*again} == {SUMMARY, ONE}


def test_a_section_stays_in_the_document_that_has_its_marks():
    document = "# Mine\n\n<!-- begin one -->\n<!-- end one -->\n\nAfter.\n"

    places = {name: page_of(name, SUMMARY, document) for name in PAGES}
    texts = with_stories({SUMMARY: document}, SUMMARY, {"one": story()}, {"one": places["one"]})

    assert places == {"one": SUMMARY, "two": TWO}
    assert {*texts} == {SUMMARY}
    assert texts[SUMMARY] == document.replace("begin one -->", f"begin one -->\n{markdown_report(story()).strip()}")


def test_rows_of_other_statements_say_that_theirs_were_not_tested():
    old = TextTable(
        ["suite", "seeds", "best", "H1"], [["[a](results/a.md)", "3", "x", "supported"], ["b", "3", "y", ""]]
    )
    new = TextTable(["suite", "seeds", "best", "H2"], [["[b](results/b.md)", "5", "z", "undecided"]])

    table = merged(old, new)

    assert table.header == ["suite", "seeds", "best", "H1", "H2"]
    assert table.rows == [
        ["[a](results/a.md)", "3", "x", "supported", "not tested"],
        ["[b](results/b.md)", "5", "z", "not tested", "undecided"],
    ]


def test_an_overview_that_was_edited_by_hand_is_not_lost():
    document = "# R\n\n<!-- begin overview -->\nmine\n<!-- end overview -->\n"

    with pytest.raises(RunError, match="between the marks of the overview"):
        with_stories({SUMMARY: document, ONE: ""}, SUMMARY, {"one": story()}, {"one": ONE})


def test_a_report_of_several_folders_has_no_single_file(tmp_path, capsys):
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "page.html")]) == 2
    assert "several folders" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b" / "a")]) == 2
    assert "two folders named 'a'" in capsys.readouterr().err


def test_suites_are_listed_and_an_unknown_one_is_refused(capsys):
    assert main(["experiment", "list"]) == 0
    assert "femnist-writers: FEMNIST" in capsys.readouterr().out
    assert main(["experiment", "digitz"]) == 2
    assert "Did you mean 'digits'" in capsys.readouterr().err


def test_methods_keep_the_order_of_the_suite():
    runs = [made_run(name, 0, CURVES[name], config=OPTIONS[name]) for name in ("fo-2", "fedavg")]

    assert list(compare(runs, LABELS).runs) == ["fedavg", "fo-2"]


def private_setting(name, spent, source="digits"):
    """Return a setting whose two methods reach 10 × ε % after s*, without noise 90 %, ν = 1 a point less."""
    reached = 0.9 if spent is None else spent / 10
    options = {"data.source": source, "privacy.dp": "none" if spent is None else "client"}
    runs = [
        replace(
            run,
            summary={
                **run.summary,
                **({} if spent is None else {"privacy": {"epsilon": spent + 0.001 * seed, "delta": 1e-3}}),
            },
        )
        for seed in range(2)
        for method, value in (("fedavg", reached), ("per-fedavg", reached - 0.01))
        for run in [made_run(method, seed, [value] * (NUM_STEPS + 1), config={**OPTIONS[method], **options})]
    ]
    return Graded(name, 0.0, compare(runs, LABELS, reference="fedavg", baseline="per-fedavg"))


def test_a_report_of_several_epsilons_shows_what_privacy_costs(tmp_path):
    settings = [private_setting("plain", None), private_setting("much", 4.0), private_setting("little", 0.5)]
    told = story(settings=[*settings, private_setting("alone", 2.0, source="mnist")], choices={})

    write_report(told, tmp_path / "report.html")
    text = markdown_report(told)

    assert {"privacy-new.svg", "privacy-participating.png"} <= {
        path.name for path in (tmp_path / "report-figures").iterdir()
    }
    assert "What privacy costs" in (tmp_path / "report.html").read_text(encoding="utf-8")
    rows = [line.split("|")[1:5] for line in text.splitlines() if line.startswith("| digits")]
    assert [[cell.split("%")[0].strip() for cell in row] for row in rows[:3]] == [
        ["digits", "0.5", "5.0", "4.0"],
        ["digits", "4", "40.0", "39.0"],
        ["digits", "none", "90.0", "89.0"],
    ]
    assert "Client-level differential privacy: ε = 4 at δ = 0.001." in text
    assert "ε = 2 at δ = 0.001." in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "| mnist" not in text  # one ε is no comparison
    assert "against ε" not in markdown_report(story())
