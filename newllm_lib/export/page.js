// The page around the worker: words in, words out, and the contexts as a picture. Everything that comes from the model,
// its card or a user is text to it, never HTML.
"use strict";

const COLUMNS = 120, HEIGHT = 4, QUICK = 4; // tokens in the picture; pixels of a row; a half-life below so many tokens is quick

const $ = (id) => document.getElementById(id);
const TEXTS = JSON.parse($("texts").textContent); // language -> name -> sentence
const { about, ...model } = JSON.parse($("model").textContent);
const worker = new Worker(URL.createObjectURL(new Blob([$("worker").textContent], { type: "text/javascript" })));
const columns = [];
let language = [document.documentElement.lang, navigator.language].some((it) => it.startsWith("ja")) ? "ja" : "en", state = "opening", opened = { bytes: 0, layers: 0, tops: [] }, tokens = 0, started = 0, counted = 0, frame = 0;

const say = (name, values = {}) => TEXTS[language][name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
const number = (value) => value.toLocaleString(language);
const isChat = model.chats;

/** Every text of the page in its language; a pretrained model's page has some of its own. */
function write() {
  const values = { ...about, parameters: number(about.parameters) }, texts = TEXTS[language];
  document.documentElement.lang = language;
  for (const one of document.querySelectorAll("[data-text]")) {
    const name = one.dataset.text;
    one.textContent = say(!isChat && texts[`${name}Text`] ? `${name}Text` : name, values);
  }
  document.title = $("title").textContent;
  $("log").setAttribute("aria-label", document.title);
  const { trained, held, score, version } = about, facts = { trained, held, score, weights: model.memory.weights, version };
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([name, fact]) => [element("dt", say(name)), element("dd", fact)]));
  tell();
}

function tell() {
  $("status").textContent = TEXTS[language][state] ? say(state) : state;
  $("remembers").textContent = say("remembers", { bytes: number(opened.bytes), tokens: number(tokens) });
  $("picture").setAttribute("aria-label", say("picture", { layers: opened.layers, count: columns.length }));
}

function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

/** A new turn in the log, and the function that adds to it. */
function turn(role, text) {
  const box = element("div", "", `turn ${role}`), append = (piece) => {
    box.append(piece);
    $("log").scrollTop = $("log").scrollHeight;
  };
  $("log").append(box);
  append(text);
  return append;
}

/** The conversation that the worker remembers, in place of the one that is there. */
function show({ messages, tokens: read }, what) {
  $("log").replaceChildren();
  for (const { role, content } of messages) turn(role, content);
  columns.length = 0;
  draw();
  [tokens, state] = [read, what];
  $("words").focus();
}

function busy(isBusy) {
  $("say").disabled = isBusy;
  $("stop").disabled = !isBusy;
  for (const id of ["reset", "save", "load"]) $(id).disabled = isBusy;
}

/** Where each row of the picture stands: layers apart, and in a layer the slow channels apart from the quick ones. */
function places({ lives, layers }) {
  let y = 0;
  const isSlow = lives.map((life) => life >= QUICK), begins = (row) => row % (lives.length / layers) === 0;
  const tops = lives.map((_, row) => (y += row && HEIGHT + (begins(row) ? 8 : isSlow[row] && !isSlow[row - 1] ? 3 : 0)));
  $("picture").height = y + HEIGHT;
  return tops;
}

function draw() {
  const canvas = $("picture"), brush = canvas.getContext("2d"), width = canvas.width / COLUMNS;
  const largest = opened.tops.map((_, row) => Math.max(1e-6, ...columns.map((column) => Math.abs(column[row]))));
  brush.clearRect(0, 0, canvas.width, canvas.height);
  columns.forEach((column, x) => column.forEach((value, row) => {
    const share = value / largest[row];
    brush.fillStyle = `rgba(${share < 0 ? "45, 110, 220" : "215, 60, 50"}, ${Math.abs(share)})`;
    brush.fillRect(x * width, opened.tops[row], width, HEIGHT);
  }));
}

function download(content, name) {
  const link = element("a", "");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

let append = () => {};
const answers = {
  token({ text, contexts }) {
    columns.push(contexts);
    if (columns.length > COLUMNS) columns.shift();
    tokens++;
    counted++;
    cancelAnimationFrame(frame); // one picture a frame, of the last token
    frame = requestAnimationFrame(draw);
  },
  piece: ({ piece }) => append(piece),
  "done open"(found) {
    opened = { ...found, tops: places(found) };
    state = "ready";
    busy(false);
    if (window === window.top) $("words").focus(); // a notebook is not scrolled to it
  },
  "done say"({ tokens: read }) {
    tokens = read;
    state = say("speed", { speed: number(Math.round((1000 * counted) / (performance.now() - started))) });
    busy(false);
  },
  "done memory": ({ file }) => download(file, "memory.safetensors"),
  "done reset": (found) => show(found, "ready"),
  "done remember": (found) => show(found, "loaded"),
};

worker.onmessage = ({ data: { kind, ...what } }) => {
  if (kind.startsWith("failed")) {
    state = what.error;
    busy(false);
  } else answers[kind]?.(what);
  tell();
};

// A number that cannot be becomes the nearest that can.
$("fields").onchange = ({ target }) => {
  const { valueAsNumber: value, defaultValue, min, max } = target;
  target.value = Number.isNaN(value) ? defaultValue : Math.min(Math.max(value, min), max);
};
$("form").onsubmit = (event) => {
  event.preventDefault();
  const text = $("words").value;
  if ((isChat && !text.trim()) || $("say").disabled) return;
  const options = Array.from($("fields").querySelectorAll("input"), ({ id, valueAsNumber }) => [id, valueAsNumber]);
  $("words").value = "";
  turn("user", text);
  append = turn("assistant", "");
  [started, counted] = [performance.now(), 0];
  busy(true);
  worker.postMessage({ kind: "say", text, options: Object.fromEntries(options) });
};
$("words").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
};
$("stop").onclick = () => worker.postMessage({ kind: "stop" });
$("reset").onclick = () => worker.postMessage({ kind: "reset" });
$("save").onclick = () => worker.postMessage({ kind: "memory", withWords: $("words-too").checked });
$("load").onchange = async ({ target }) => {
  const buffer = await target.files[0].arrayBuffer();
  target.value = "";
  worker.postMessage({ kind: "remember", buffer });
};
$("transcript").onclick = () => {
  const line = ({ className, textContent }) => (isChat ? `${say(className.includes("user") ? "you" : "it")}: ${textContent}\n\n` : textContent);
  download(new Blob(Array.from(document.querySelectorAll(".turn"), line), { type: "text/plain" }), "conversation.txt");
};
$("language").onclick = () => {
  language = language === "en" ? "ja" : "en";
  write();
};

$("log").classList.toggle("text", !isChat);
write();
worker.postMessage({ kind: "open", model, weights: $("weights").textContent });
