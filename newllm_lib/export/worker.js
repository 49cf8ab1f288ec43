// The page's worker: it holds the model, so that the page stays alive while it thinks.
"use strict";

const SHOWN = 24; // channels of a layer in the picture

let talk, rows, isStopped = false;

function contexts() {
  return Float32Array.from(rows, (at) => talk.state[at]);
}

const answers = {
  open({ model, bytes }) {
    talk = new newllm.Talk(model, newllm.bytesOf(bytes));
    // From quick to slow, evenly.
    const { C } = talk.model, lives = [];
    rows = talk.model.channels().flatMap((channels, layer) =>
      Array.from({ length: Math.min(SHOWN, C) }, (_, i) => {
        const [life, channel] = channels[Math.round((i * (C - 1)) / (Math.min(SHOWN, C) - 1))];
        lives.push(life);
        return layer * C + channel;
      }),
    );
    talk.seen = (id) => postMessage({ kind: "token", text: talk.tokenizer.decode([id]), contexts: contexts() });
    return { bytes: 4 * talk.model.S, layers: talk.model.L, lives };
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
