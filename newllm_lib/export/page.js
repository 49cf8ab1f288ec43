// The page around the worker: words in, words out, and the contexts as a picture. Everything that comes from the model,
// its card or a user is text to it, never HTML.
"use strict";

const FIELDS = { temperature: [0.8, 0, 5, 0.05], topP: [0.95, 0.01, 1, 0.01], penalty: [1, 0.5, 2, 0.05], seed: [0, 0, 4294967295, 1], most: [200, 1, 2000, 1] };
const COLUMNS = 120, QUICK = 4; // tokens in the picture; a half-life below so many tokens is quick

const $ = (id) => document.getElementById(id);
const TEXTS = JSON.parse($("texts").textContent); // language -> name -> sentence
const { about, ...model } = JSON.parse($("model").textContent);
const worker = new Worker(URL.createObjectURL(new Blob([$("worker").textContent], { type: "text/javascript" })));
const columns = [];
let language = navigator.language.startsWith("ja") ? "ja" : "en", state = "opening", opened = { bytes: 0, layers: 0, lives: [] }, tokens = 0, started = 0, counted = 0;

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

/** A new turn in the log; a call of what is returned adds to it. */
function turn(role, text) {
  const box = element("div", "", `turn ${role}`), append = (piece) => {
    box.textContent += piece;
    $("log").scrollTop = $("log").scrollHeight;
  };
  $("log").append(box);
  append(text);
  return append;
}

function busy(isBusy) {
  $("say").disabled = isBusy;
  $("stop").disabled = !isBusy;
  for (const id of ["reset", "save", "load"]) $(id).disabled = isBusy;
}

function draw() {
  const canvas = $("picture"), brush = canvas.getContext("2d"), rows = opened.lives.length;
  if (!rows) return;
  const slow = (row) => opened.lives[row] >= QUICK;
  const gaps = opened.lives.map((_, row) => row > 0 && (row % (rows / opened.layers) === 0 ? 8 : slow(row) && !slow(row - 1) ? 3 : 0));
  const height = 4, whole = rows * height + gaps.reduce((a, b) => a + b, 0);
  if (canvas.height !== whole) canvas.height = whole;
  const width = canvas.width / COLUMNS, largest = new Float32Array(rows).fill(1e-6);
  for (const column of columns) column.forEach((value, row) => (largest[row] = Math.max(largest[row], Math.abs(value))));
  brush.clearRect(0, 0, canvas.width, canvas.height);
  columns.forEach((column, x) => {
    let y = 0;
    column.forEach((value, row) => {
      y += gaps[row];
      const share = value / largest[row];
      brush.fillStyle = `rgba(${share < 0 ? "45, 110, 220" : "215, 60, 50"}, ${Math.abs(share)})`;
      brush.fillRect(x * width, y, width, height);
      y += height;
    });
  });
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
    requestAnimationFrame(draw);
  },
  piece: ({ piece }) => append(piece),
  "done open"(found) {
    opened = found;
    state = "ready";
    busy(false);
    $("words").focus();
  },
  "done say"({ tokens: read }) {
    tokens = read;
    state = say("speed", { speed: number(Math.round((1000 * counted) / (performance.now() - started))) });
    busy(false);
  },
  "done memory": ({ file }) => download(file, "memory.safetensors"),
  "done remember"({ messages, tokens: read }) {
    $("log").replaceChildren();
    columns.length = 0;
    for (const { role, content } of messages) turn(role, content);
    tokens = read;
    state = "loaded";
  },
};

worker.onmessage = ({ data: { kind, ...what } }) => {
  if (kind.startsWith("failed")) {
    state = what.error;
    busy(false);
  } else answers[kind]?.(what);
  tell();
};

$("fields").append(
  ...Object.entries(FIELDS).map(([name, [value, min, max, step]]) => {
    const box = element("div", ""), label = element("label", ""), input = element("input", "");
    label.htmlFor = input.id = label.dataset.text = name;
    Object.assign(input, { type: "number", value, min, max, step });
    box.append(label, input);
    return box;
  }),
);
$("form").onsubmit = (event) => {
  event.preventDefault();
  const text = $("words").value;
  if ((isChat && !text.trim()) || $("say").disabled) return;
  const options = Object.fromEntries(
    Object.entries(FIELDS).map(([name, [standard, min, max]]) => {
      const value = $(name).valueAsNumber;
      $(name).value = Number.isNaN(value) ? standard : Math.min(Math.max(value, min), max);
      return [name, $(name).valueAsNumber];
    }),
  );
  $("words").value = "";
  turn("user", text);
  append = turn("assistant", "");
  [started, counted] = [performance.now(), 0];
  busy(true);
  worker.postMessage({ kind: "say", text, options });
};
$("words").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
};
$("stop").onclick = () => worker.postMessage({ kind: "stop" });
$("reset").onclick = () => {
  worker.postMessage({ kind: "reset" });
  $("log").replaceChildren();
  columns.length = tokens = 0;
  draw();
  tell();
  $("words").focus();
};
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
worker.postMessage({ kind: "open", model, bytes: $("weights").textContent });
