"use strict";
// The address holds the whole search, so that a reload, the back button and a shared link lead to the same results:
// whatever changes the search opens a new address, and this script shows what the address asks for.

const NAMES = {untuned: "Before tuning", tuned: "After tuning", both: "Side by side"};
const KINDS = {pictures: "Pictures", captions: "Captions"};
const DEFAULTS = {rerank: "0", find: "pictures", page: "1"};
const LIMITS = ["under", "after", "before"];
const KEPT = ["view", "rerank", "find", "k", ...LIMITS];  // what stays when something else is looked for
let largest = Infinity;  // bytes of a picture that the server takes
const fields = new URLSearchParams(location.search);
const $ = id => document.getElementById(id);
const count = number => number.toLocaleString("en");

function make(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** The address of the present search with some fields changed, without those that say nothing. */
function address(changes, from = fields) {
  const made = new URLSearchParams(from);
  for (const [name, value] of Object.entries(changes)) made.set(name, value);
  for (const [name, value] of Object.entries(DEFAULTS)) if (made.get(name) === value) made.delete(name);
  if (made.get("find") === "captions" && !made.has("q")) for (const name of LIMITS) made.delete(name);
  for (const name of LIMITS) if (!made.get(name)) made.delete(name);
  if (made.has("q")) made.delete("find");  // captions are found by picture
  else if (!made.has("find")) made.delete("rerank");  // two pictures are not matched
  return "/?" + made;
}

/** The address of another search by the same model. */
function anew(query) {
  return address(query, KEPT.filter(name => fields.has(name)).map(name => [name, fields.get(name)]));
}

function say(message, wrong = false) {
  $("status").className = wrong ? "wrong" : "";
  $("status").textContent = message;
}

async function ask(path, request) {
  let answer;
  try {
    answer = await fetch(path, request);
  } catch {
    throw new Error("The server does not answer; see where aurora serve runs.");
  }
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  return value;
}

function choose(id, name, values, names, chosen) {
  for (const value of values) {
    const radio = make("input", {type: "radio", name, value, checked: value === chosen});
    radio.addEventListener("change", () => changed({[name]: value}));
    $(id).append(make("label", {}, radio, names[value]));
  }
  $(id).hidden = values.length < 2;
}

/** Show what the form asks for: its words or, if there are none, still what is like the picture. */
function search() {
  const words = $("text").value;
  location.assign(words.trim() || !byPicture() ? anew({q: words}) : address({page: "1"}));
}

function changed(what) {
  for (const [name, value] of Object.entries(what)) fields.set(name, value);
  if (isAsked()) search();
}

function byPicture() {
  return fields.has("like") || fields.has("picture");
}

function isAsked() {
  return fields.has("q") || byPicture();
}

function prepare(about) {
  largest = about.largest;
  const find = fields.get("find") ?? "pictures";
  const order = ["untuned", "tuned", "both"].filter(view => about.views.includes(view));
  choose("views", "view", order, NAMES, fields.get("view") ?? about.views[0]);
  if (byPicture() && about.captions) choose("kinds", "find", ["pictures", "captions"], KINDS, find);
  $("reranking").hidden = !about.rerank || (byPicture() && find === "pictures");
  const told = fields.get("rerank") ?? "0";
  if (![...$("rerank").options].some(option => option.value === told))
    $("rerank").append(make("option", {value: told}, "the best " + told));
  $("rerank").value = told;
  $("under").value = fields.get("under") ?? "";
  for (const name of ["after", "before"]) $(name).value = day(fields.get(name) ?? "");
  $("limits").open = LIMITS.some(name => fields.has(name));
  note(about.notes);
  if (!isAsked()) {
    say(`${count(about.pictures)} pictures of ${about.folder} by the model ${about.model}. Say what to look for, or give a picture.`);
    $("text").focus();
  }
}

/** A date as its field takes it: a year or a month is its first day. */
function day(date) {
  return date && (date + "-01-01".slice(Math.max(0, date.length - 4))).slice(0, 10);
}

function note(notes) {
  $("notes").replaceChildren(...notes.map(text => make("p", {}, text)));
}

function show(result) {
  const captions = result.find === "captions", both = result.views.length > 1;
  const first = (result.page - 1) * result.k + 1;
  const last = first - 1 + Math.max(...result.views.map(view => view.found.length));
  const what = result.query.text === null ? "Like this picture" : `“${result.query.text}”`;
  const range = last < first ? "nothing more" : `${result.find} ${count(first)}–${count(last)}${result.total === null ? "" : ` of ${count(result.total)}`}`;
  say(`${what}: ${range}, scored by ${result.views[0].score}`);
  note(result.notes);
  document.title = `${what}, page ${result.page} – Aurora`;
  const columns = result.views.map(view => {
    const list = make("ol", {className: result.find, start: first}, ...view.found.map(captions ? caption : hit => card(hit, result)));
    list.setAttribute("role", "list");
    const column = make("section", {className: view.view}, ...(both ? [heading(view.view, captions)] : []), list);
    column.setAttribute("aria-label", NAMES[view.view]);
    return column;
  });
  $("results").replaceChildren(make("div", {className: both ? "columns both" : "columns"}, ...columns));
  turn(result);
}

function heading(view, captions) {
  const legend = make("small", {}, "▲ places moved up");
  return make("h2", {}, NAMES[view], ...(view === "tuned" && !captions ? [legend] : []));
}

function card(hit, result) {
  const name = hit.path.split("/").pop(), words = hit.captions.join("; ");
  const picture = make("img", {src: "/thumbnail/" + hit.row, alt: words || name, width: 320, height: 320});
  const shown = make("a", {href: "/picture/" + hit.row, className: "shown", target: "_blank", rel: "noopener"}, picture);
  picture.addEventListener("error", () => shown.replaceWith(
    make("div", {className: "lost"}, "This picture is gone or has changed since it was indexed; run aurora index again.")));
  const line = make("div", {className: "line"}, make("b", {}, hit.rank), make("span", {className: "score"}, hit.score.toFixed(3)));
  const item = make("li", {}, shown, make("div", {className: "text"}, line));
  if ("rank_before" in hit && "path" in hit) {
    const move = moved(hit, result.compared);
    item.classList.toggle("up", move.up);
    line.append(make("span", {className: "move", title: move.said}, make("span", {ariaHidden: "true"}, move.text), make("span", {className: "unseen"}, move.said)));
  }
  if (words) item.lastChild.append(make("p", {className: "caption", title: words}, words));
  const similar = make("a", {href: anew({like: hit.row})}, "similar");
  similar.setAttribute("aria-label", "Pictures similar to " + name);
  item.lastChild.append(make("div", {className: "foot"}, make("span", {className: "path", title: hit.path}, name), similar));
  return item;
}

/** How a picture's rank by the tuned model compares with that before tuning, which is looked up so many ranks deep. */
function moved(hit, compared) {
  const before = hit.rank_before ?? compared + 1, places = before - hit.rank;
  if (hit.rank_before === null) return {up: true, text: `▲ ${places}+`, said: `moved up from behind rank ${compared}`};
  if (places > 0) return {up: true, text: `▲ ${places}`, said: `moved up from rank ${before}`};
  if (places < 0) return {up: false, text: `▼ ${-places}`, said: `moved down from rank ${before}`};
  return {up: false, text: "=", said: "same rank before tuning"};
}

function caption(hit) {
  return make("li", {},
    make("span", {className: "rank"}, hit.rank),
    make("span", {className: "score"}, hit.score.toFixed(3)),
    make("a", {href: anew({q: hit.caption}), title: "Pictures for this caption"}, hit.caption));
}

function turn(result) {
  const link = (page, text, rel) => page === null ? "" : make("a", {href: address({page: String(page)}), rel}, text);
  $("pages").replaceChildren(
    link(result.previous, "← Previous", "prev"),
    make("span", {ariaCurrent: "page"}, `Page ${result.page}`),
    link(result.next, "Next →", "next"));
  $("pages").hidden = result.previous === null && result.next === null;
}

$("form").addEventListener("submit", event => {
  event.preventDefault();
  search();
});
$("rerank").addEventListener("change", () => changed({rerank: $("rerank").value}));
// A date that is typed changes with every digit, and Enter in a field both changes it and sends the form: so these wait
// for the form.
for (const name of LIMITS) $(name).addEventListener("change", () => fields.set(name, $(name).value));
window.addEventListener("pageshow", event => event.persisted && location.reload());  // its choices may say otherwise
$("file").addEventListener("change", async () => {
  const file = $("file").files[0];
  if (!file) return;
  $("file").value = "";
  say("Sending the picture…");
  try {
    if (file.size > largest) throw new Error(`the picture is larger than ${largest / 2 ** 20} MB; send a smaller one`);
    const {picture} = await ask("/api/pictures", {method: "POST", headers: {"Content-Type": file.type || "image/unknown"}, body: file});
    location.assign(anew({picture}));
  } catch (error) {
    $("results").replaceChildren();
    $("pages").hidden = true;
    say(error.message, true);
  }
});

(async () => {
  try {
    $("text").value = fields.get("q") ?? "";
    if (fields.has("like")) $("sample").src = "/thumbnail/" + encodeURIComponent(fields.get("like"));
    if (fields.has("picture")) $("sample").src = "/sent/" + encodeURIComponent(fields.get("picture"));
    $("sample").addEventListener("load", () => $("sample").hidden = false);
    prepare(await ask("/api/about"));
    if (!isAsked()) return;
    say("Searching…");
    show(await ask("/api/search?" + fields));
    if (fields.has("page")) $("results").focus({preventScroll: true});
  } catch (error) {
    say(error.message, true);
  }
})();
