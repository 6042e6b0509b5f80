"""ChatbotData: reading, choosing, dealing into splits, and the ways to show it to a model."""

from __future__ import annotations

import csv
import io
import itertools
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from src.contracts import IGNORE_INDEX
from src.datamodules import ChatbotDataModule, DialogSumDataModule
from src.datamodules.chatbot import question_key
from src.errors import ParleyError
from src.inference.examples import from_dataset
from src.models.loading import load_tokenizer
from src.models.saving import save_tokenizer

PARTS = ("train", "validation", "test")
CHATML = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\\n' + message['content'] + '</s>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
TRICKY = (
    'Q,A,label\n"안녕, 하세요?","네, ""반가워요"".",0\n  ,빈 질문,0\n'
    "빈 답,   ,1\n헤어졌어,힘내세요.,1\n좋아해,저도요.,2   \n"
)


def write(path: Path, rows: list[tuple[str, str, object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("Q", "A", "label"), *rows])
    return path


def pairs(count: int) -> list[tuple[str, str, object]]:
    return [(f"질문 {number}번 있어?", f"답 {number}.", number % 3) for number in range(count)]


@pytest.fixture
def chatbot(base: Callable[[str], str], tmp_path: Path) -> Callable[..., ChatbotDataModule]:
    def make(path: Path | str, architecture: str = "gpt2", **settings) -> ChatbotDataModule:
        name = architecture if Path(architecture).is_dir() else base(architecture)
        return ChatbotDataModule(name, path=str(path), **{"cache_dir": str(tmp_path / "cache"), **settings})

    return make


@pytest.fixture
def instruct(base: Callable[[str], str], tmp_path: Path) -> Callable[[str], str]:
    """A directory like the base's whose tokenizer has a chat template."""

    def make(template: str = CHATML) -> str:
        import shutil

        directory = tmp_path / "instruct"
        shutil.copytree(base("gpt2"), directory)
        tokenizer = load_tokenizer(directory)
        tokenizer.chat_template = template
        save_tokenizer(tokenizer, directory)
        return str(directory)

    return make


def questions(module: ChatbotDataModule) -> dict[str, list[str]]:
    return {part: [example.prompt for example in module.examples(part)] for part in PARTS}


def test_tricky_cells(chatbot, tmp_path, caplog):
    (tmp_path / "tricky.csv").write_text(TRICKY, encoding="utf-8-sig")
    module = chatbot(tmp_path / "tricky.csv", validation_fraction=0.0, test_fraction=0.0)
    assert [(e.prompt, e.target) for e in module.examples("train")] == [
        ("안녕, 하세요?", '네, "반가워요".'),
        ("헤어졌어", "힘내세요."),
        ("좋아해", "저도요."),
    ]
    assert "dropped 2 of 5 rows with an empty cell" in caplog.text


@pytest.mark.parametrize(("labels", "count"), [(None, 3), ([1], 1), ([2], 1), ([0, 2], 2)])
def test_labels_choose(chatbot, tmp_path, labels, count):
    (tmp_path / "tricky.csv").write_text(TRICKY, encoding="utf-8")
    module = chatbot(tmp_path / "tricky.csv", labels=labels, validation_fraction=0.0, test_fraction=0.0)
    assert len(module.examples("train")) == count


@pytest.mark.parametrize(
    ("rows", "settings", "line"),
    [
        ("Q,A,label\n가,나,x\n", {"labels": [1]}, "line 2: label 'x' is not a number"),
        ("Q,A\n가,나\n", {"labels": [1]}, "no column 'label'.*; leave labels out"),
        ("question,A\n가,나\n", {}, "no column 'Q'"),
        ("Q,A,label\n가,나,0\n", {"labels": [7]}, "train split .* is empty"),
        ("Q,A,label\n", {"validation_fraction": 0.6, "test_fraction": 0.4}, "leave something to train on"),
        ("Q,A,label\n", {"validation_fraction": -0.1}, "shares of 0 or more"),
    ],
)
def test_what_is_refused(chatbot, tmp_path, rows, settings, line):
    (tmp_path / "odd.csv").write_text(rows, encoding="utf-8")
    with pytest.raises(ParleyError, match=line) as error:
        chatbot(tmp_path / "odd.csv", **settings).examples("train")
    assert "\n" not in str(error.value)


def test_parts_share_out_every_row_and_no_question(chatbot, tmp_path):
    variants = ["밥 먹었어?", "밥먹었어", "밥 먹었어 ?!", unicodedata.normalize("NFD", "밥 먹었어?")]
    rows = [*pairs(600), *((variant, f"네 {n}", 0) for n, variant in enumerate(variants))]
    file = write(tmp_path / "all.csv", rows)
    for seed in range(3):
        parts = questions(chatbot(file, validation_fraction=0.2, test_fraction=0.1, seed=seed))
        assert Counter(itertools.chain(*parts.values())) == Counter(question for question, _, _ in rows)
        keys = {part: {question_key(question) for question in found} for part, found in parts.items()}
        for one, other in itertools.combinations(keys.values(), 2):
            assert not one & other
        assert 80 < len(parts["validation"]) < 160
        assert 35 < len(parts["test"]) < 90


def test_a_question_stays_in_its_part(chatbot, tmp_path):
    few, more = write(tmp_path / "few.csv", pairs(200)), write(tmp_path / "more.csv", pairs(300))
    settings = {"validation_fraction": 0.2, "test_fraction": 0.2}
    before, after = questions(chatbot(few, **settings)), questions(chatbot(more, **settings))
    chosen = questions(chatbot(few, labels=[1], **settings))
    for part in PARTS:
        assert set(before[part]) <= set(after[part])
        assert set(chosen[part]) <= set(before[part])
    assert questions(chatbot(few, seed=1, **settings)) != before


def test_answers_to_one_question_are_its_references(chatbot, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "train.csv", pairs(5))
    write(folder / "test.csv", [("가?", "나", 0), ("다?", "라", 0), ("가?", "마", 0)])
    found = chatbot(folder, test_split="test").examples("test")
    assert [(example.prompt, example.references) for example in found] == [("가?", ["나", "마"]), ("다?", ["라"])]


def test_splits_of_the_sources_own_are_taken_as_they_are(chatbot, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for part, rows in (("train", pairs(20)), ("test", pairs(5))):
        write(folder / f"{part}.csv", rows)
    module = chatbot(folder, test_split="test", validation_fraction=0.3)
    assert len(module.examples("test")) == 5
    assert len(module.examples("train")) + len(module.examples("validation")) == 20


def test_all_of_chatbot_data(chatbot, tmp_path):
    import os

    root = Path(os.environ.get("PARLEY_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "chatbot"
    if not (root / "ChatbotData.csv").is_file():
        pytest.skip("ChatbotData.csv is not under PARLEY_DATA")
    module = chatbot(root)
    parts = {part: module.examples(part) for part in PARTS}
    with (root / "ChatbotData.csv").open(encoding="utf-8", newline="") as stream:
        expected = Counter((row["Q"], row["A"]) for row in csv.DictReader(stream))
    read = Counter(
        (example.prompt, answer) for examples in parts.values() for example in examples for answer in example.references
    )
    assert read == expected  # byte for byte
    assert sum(read.values()) == 11_823
    counts = [
        len(chatbot(root, labels=[label], validation_fraction=0, test_fraction=0).examples("train"))
        for label in (0, 1, 2)
    ]
    assert counts == [5290, 3570, 2963]


def test_published_encoding(chatbot, tmp_path):
    file = write(tmp_path / "all.csv", [("밥 먹었어?", "네, 먹었어요.", 0)])
    module = chatbot(file, validation_fraction=0.0, test_fraction=0.0, loss_on="all")
    tokenizer = module.tokenizer
    row = module._encoded("train")[0]
    whole = row["prompt_ids"] + row["target_ids"]
    assert whole == tokenizer("<s>밥 먹었어?</s><s>네, 먹었어요.</s>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(row["prompt_ids"]) == "<s>밥 먹었어?</s><s>"
    batch = module.collator(training=False)([row])
    assert batch["labels"][0].tolist() == [IGNORE_INDEX, *whole[1:]]


def test_published_encoding_keeps_within_128_tokens_and_its_ends(chatbot, tmp_path):
    file = write(tmp_path / "all.csv", [("긴 질문 " * 99, "긴 대답 " * 99, 0)])
    row = chatbot(file, validation_fraction=0.0, test_fraction=0.0)._encoded("train")[0]
    assert len(row["prompt_ids"] + row["target_ids"]) == 128
    assert (row["prompt_ids"][0], row["prompt_ids"][-2:], row["target_ids"][-1]) == (0, [1, 0], 1)


def test_chat_template_comes_first(chatbot, instruct, tmp_path):
    file = write(tmp_path / "all.csv", [("밥?", "네.", 0)])
    module = chatbot(file, instruct(), validation_fraction=0.0, test_fraction=0.0)
    assert module.resolved_format == "chat"
    row = module._encoded("train")[0]
    assert module.tokenizer.decode(row["prompt_ids"]) == "<s>user\n밥?</s>\n<s>assistant\n"
    assert module.tokenizer.decode(row["target_ids"]) == "네.</s>"
    assert row["target_ids"].count(module.tokenizer.eos_token_id) == 1


def test_chat_template_for_dialogsum(instruct, tmp_path, rows, jsonl):
    path = jsonl(tmp_path / "rows.jsonl", rows(3))
    module = DialogSumDataModule(instruct(), path=str(path), cache_dir=str(tmp_path / "cache"))
    row = module._encoded("validation")[0]
    text = module.tokenizer.decode(row["prompt_ids"])
    assert text.startswith("<s>user\nSummarize the following conversation.")
    assert text.endswith("</s>\n<s>assistant\n")


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{{ raise_exception('no users here') }}", "chat template fails .*no users here"),
        ("{% if add_generation_prompt %}first{% else %}second{% endif %}", "right after its generation prompt"),
    ],
)
def test_chat_templates_that_do_not_fit(chatbot, instruct, tmp_path, template, line):
    module = chatbot(write(tmp_path / "all.csv", pairs(20)), instruct(template))
    with pytest.raises(ParleyError, match=line):
        module._encoded("train")


@pytest.mark.parametrize(
    ("architecture", "settings", "line"),
    [
        ("t5", {"format": "chat"}, "is an encoder-decoder; leave format out"),
        ("bart", {"format": "published"}, "is an encoder-decoder; leave format out"),
        ("t5", {"packing": True}, "packing: true is for decoder-only models"),
        ("t5", {"loss_on": "all"}, "loss_on: all is for decoder-only models"),
        ("gpt2", {"format": "chat"}, "no chat template; use plain or published"),
    ],
)
def test_contradictions_are_refused(chatbot, tmp_path, architecture, settings, line):
    module = chatbot(write(tmp_path / "all.csv", pairs(20)), architecture, **settings)
    with pytest.raises(ParleyError, match=line) as error:
        module._encoded("train")
    assert "\n" not in str(error.value)


def test_plain_text_gets_a_line_end_between_prompt_and_answer(chatbot, tmp_path):
    file = write(tmp_path / "all.csv", [("밥?", "네.", 0)])
    row = chatbot(file, format="plain", validation_fraction=0.0, test_fraction=0.0)._encoded("train")[0]
    tokenizer = chatbot(file).tokenizer
    assert tokenizer.decode(row["prompt_ids"] + row["target_ids"]) == "밥?\n네.</s>"


class _Web(BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.asked.append(self.path)
        if self.path.startswith("/gone"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if "page" in self.path else "text/plain; charset=utf-8")
        self.end_headers()
        text = io.StringIO()
        csv.writer(text).writerows([("Q", "A", "label"), *pairs(40)])
        self.wfile.write(text.getvalue().encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def web() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Web)
    _Web.asked.clear()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_web_address_is_fetched_once(chatbot, web):
    sizes = [sum(len(chatbot(f"{web}/raw?x=1").examples(part)) for part in ("train",)) for _ in range(2)]
    assert sizes[0] == sizes[1] > 20
    assert _Web.asked == ["/raw?x=1"]


@pytest.mark.parametrize(("page", "line"), [("gone.csv", "Not Found.*check the address"), ("page", "is a web page")])
def test_web_address_that_has_no_table(chatbot, web, page, line):
    with pytest.raises(ParleyError, match=line) as error:
        chatbot(f"{web}/{page}").examples("train")
    assert "\n" not in str(error.value)


def test_web_address_that_does_not_answer(chatbot):
    with pytest.raises(ParleyError, match=r"cannot be downloaded .*refused"):
        chatbot("http://127.0.0.1:9/ChatbotData.csv").examples("train")


@pytest.mark.parametrize("form", ["files", "saved"])
@pytest.mark.parametrize("lacking", ["", "validation", "test"])
def test_a_sources_own_splits_come_first_and_what_it_lacks_is_dealt_from_train(chatbot, tmp_path, form, lacking):
    folder = tmp_path / "folder"
    folder.mkdir()
    own = {part: [(f"{part} {n}", "답", 0) for n in range(40)] for part in PARTS if part != lacking}
    if form == "files":
        for part, rows in own.items():
            write(folder / f"{part}.csv", rows)
    else:
        tables = {
            part: Dataset.from_dict({"Q": [row[0] for row in rows], "A": ["답"] * 40}) for part, rows in own.items()
        }
        DatasetDict(tables).save_to_disk(folder)
    found = questions(chatbot(folder, test_fraction=0.3, validation_fraction=0.3))
    for part in own:
        kept = [row[0] for row in own[part]]
        assert found[part] == ([q for q in kept if q not in found[lacking]] if lacking and part == "train" else kept)
    if lacking:
        assert 0 < len(found[lacking]) < 40
        assert set(found[lacking]) < {row[0] for row in own["train"]}
        assert from_dataset(str(folder), lacking).examples == chatbot(folder).examples(lacking)
    assert [item.prompt for item in from_dataset(str(folder), "train[:2]").examples] == [
        item.prompt for item in chatbot(folder).examples("train")[:2]
    ]


def test_text_that_reads_like_a_marker_stays_text(chatbot, instruct, tmp_path):
    """Beside an encoding of the same texts by transformers' own means."""
    path = write(tmp_path / "rows.csv", [("a</s> <s>b", "c <pad></s>", 0)])
    for format, name in (("published", "gpt2"), ("plain", "gpt2"), ("chat", instruct())):
        data = chatbot(path, name, format=format, validation_fraction=0.0, test_fraction=0.0)
        row = data._encoded("train")[0]
        tokenizer = data.tokenizer
        asked, answered = (tokenizer.decode(row[key]) for key in ("prompt_ids", "target_ids"))
        ids = [*row["prompt_ids"], *row["target_ids"]]
        special = [token for token in tokenizer.convert_ids_to_tokens(ids) if token in tokenizer.all_special_tokens]
        text = "a</s> <s>b"
        if format == "published":
            assert (asked, answered) == (f"<s>{text}</s><s>", "c <pad></s></s>")
            assert special == ["<s>", "</s>", "<s>", "</s>"]
        elif format == "plain":
            assert (asked, answered) == (f"{text}\n", "c <pad></s></s>")
            assert special == ["</s>"]
        else:
            assert (asked, answered) == (f"<s>user\n{text}</s>\n<s>assistant\n", "c <pad></s></s>")
            assert special == ["<s>", "</s>", "<s>", "</s>"]
            peer = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                add_generation_prompt=True,
                sanitize_control_tokens=True,
                return_dict=False,
            )
            assert tokenizer.decode(peer) == asked
            assert [id for id in peer if id in tokenizer.all_special_ids] == [
                id for id in row["prompt_ids"] if id in tokenizer.all_special_ids
            ]
