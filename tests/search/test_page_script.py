"""The page's script in Node, on the few parts of a browser that it touches: which address a person is led to."""

import json
import shutil
import subprocess
from importlib.resources import files

import pytest

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(not NODE, reason="needs Node")
BROWSER = """
const element = () => ({
  listeners: {}, children: [], options: [], classList: {toggle() {}}, value: "",
  addEventListener(kind, does) { this.listeners[kind] = does; },
  append(...more) { this.children.push(...more); }, replaceChildren(...more) { this.children = more; },
  setAttribute() {}, focus() {},
});
const elements = {}, opened = [], there = element();
const document = {createElement: element, getElementById: id => elements[id] ??= element()};
const window = there;
const location = {search: SEARCH, assign: address => opened.push(address), reload: () => opened.push("reload")};
const about = {
  largest: 1, pictures: 9, captions: 9, folder: "f", model: "m", views: ["tuned", "untuned", "both"], rerank: 200,
  notes: [],
};
const result = {query: {text: "x"}, find: "pictures", page: 1, k: 24, previous: null, next: null, total: 9, notes: [],
  views: [{view: "tuned", score: "s", found: []}]};
const fetch = async path => ({ok: true, json: async () => path === "/api/about" ? about : result});
const tell = (target, kind, event = {}) => target.listeners[kind]({preventDefault() {}, ...event});
const enter = (id, value) => {
  elements[id].value = value;
  if (elements[id].listeners.change) tell(elements[id], "change");
};
const radio = value => {
  const radios = elements.views.children.map(label => label.children[0]);
  tell(radios.find(one => one.value === value), "change");
};
"""


def opened(search, does):
    """The addresses that the page of the address ``search`` opens while a person ``does`` something, in JavaScript."""
    page = files("aurora_petl.search").joinpath("page", "page.js").read_text(encoding="utf-8")
    ends = f"setTimeout(() => {{ {does}; console.log(JSON.stringify(opened)); }}, 20);"
    script = "\n".join((BROWSER.replace("SEARCH", json.dumps(search)), page, ends))
    made = subprocess.run([NODE, "-e", script], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(made.stdout)


@pytest.mark.parametrize(
    ("search", "does", "address"),
    [
        # Enter in a field of the form changes the field, then sends the form
        ("?q=x", 'enter("under", "2024/Rome"); tell(elements.form, "submit")', "/?under=2024%2FRome&q=x"),
        ("?like=3", 'enter("under", "2024"); tell(elements.form, "submit")', "/?like=3&under=2024"),
        ("?q=x&under=a", 'enter("under", ""); tell(elements.form, "submit")', "/?q=x"),
        # words that were typed and not sent are not lost
        ("?q=x&page=2", 'enter("text", "y"); radio("both")', "/?view=both&q=y"),
        ("?like=3", 'enter("text", "y"); tell(elements.form, "submit")', "/?q=y"),
        ("?like=3&find=captions", 'radio("both")', "/?like=3&find=captions&view=both"),
        ("", 'radio("both"); enter("text", "y"); tell(elements.form, "submit")', "/?view=both&q=y"),
        # a year being typed is many dates
        ("?q=x", 'for (const year of ["0002", "0020", "0202", "2024"]) enter("after", `${year}-05-01`)', None),
        # a page that a browser shows again as it was left
        ("?q=x", 'tell(there, "pageshow", {persisted: true})', "reload"),
        ("?q=x", 'tell(there, "pageshow", {persisted: false})', None),
    ],
)
def test_what_a_person_does(search, does, address):
    assert opened(search, does) == ([] if address is None else [address])


@pytest.mark.parametrize(("told", "shown"), [("2024", "2024-01-01"), ("2024-05", "2024-05-01"), ("", "")])
def test_dates_of_an_address_are_shown(told, shown):
    for date in (told, f"{shown}T14:30" if told else ""):
        assert opened(f"?q=x&after={date}", "opened.push(elements.after.value)") == [shown]
