// The page's worker: it holds the model, so that the page stays alive while it thinks.
"use strict";

const SHOWN = 24; // channels of a layer in the picture

let talk, rows, isStopped = false;

const answers = {
  open({ model, bytes }) {
    talk = new newllm.Talk(model, newllm.bytesOf(bytes));
    const { C, L, S, layers } = talk.model, shown = Math.min(SHOWN, C), lives = [];
    rows = layers.flatMap((layer, number) => {
      const halfLife = Array.from(layer["forget_gate.bias"], (bias) => Math.log(2) / Math.log1p(Math.exp(-bias))); // in tokens
      const order = [...halfLife.keys()].sort((one, other) => halfLife[one] - halfLife[other]); // from quick to slow
      const chosen = Array.from({ length: shown }, (_, i) => order[Math.round((i * (C - 1)) / (shown - 1))]);
      lives.push(...chosen.map((channel) => halfLife[channel]));
      return chosen.map((channel) => number * C + channel);
    });
    talk.seen = (id) => {
      const contexts = Float32Array.from(rows, (at) => talk.state[at]);
      postMessage({ kind: "token", text: talk.tokenizer.decode([id]), contexts });
    };
    return { bytes: 4 * S, layers: L, lives };
  },
  async say({ text, options }) {
    isStopped = false;
    for await (const piece of talk.reply(text, options, () => isStopped)) postMessage({ kind: "piece", piece });
    return { tokens: talk.tokens };
  },
  stop: () => void (isStopped = true),
  reset: () => talk.reset(),
  memory: async ({ withWords }) => ({ file: await talk.memory(withWords) }),
  remember: ({ buffer }) => ({ messages: talk.remember(buffer), tokens: talk.tokens }),
};

onmessage = async ({ data: { kind, ...what } }) => {
  try {
    postMessage({ kind: `done ${kind}`, ...(await answers[kind](what)) });
  } catch (error) {
    postMessage({ kind: `failed ${kind}`, error: error.message });
  }
};
