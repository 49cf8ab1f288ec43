// The page's worker, after engine.js: it holds the model, so that the page stays alive while it thinks.
let talk, isStopped = false;

const answers = {
  open({ model, weights }) {
    talk = new newllm.Talk(model, weights);
    const { C, L, S, layers } = talk.model, shown = Math.min(24, C), lives = []; // of 24 channels of a layer
    const rows = layers.flatMap((layer, number) => {
      const halfLife = Array.from(layer["forget_gate.bias"], (bias) => Math.log(2) / Math.log1p(Math.exp(-bias))); // in tokens
      const order = [...halfLife.keys()].sort((one, other) => halfLife[one] - halfLife[other]); // from quick to slow
      const chosen = Array.from({ length: shown }, (_, i) => order[Math.round((i * (C - 1)) / (shown - 1))]);
      lives.push(...chosen.map((channel) => halfLife[channel]));
      return chosen.map((channel) => number * C + channel);
    });
    talk.seen = () => postMessage({ kind: "token", contexts: Float32Array.from(rows, (at) => talk.state[at]) });
    return { bytes: 4 * S, layers: L, lives };
  },
  async say({ text, options }) {
    isStopped = false;
    for await (const piece of talk.reply(text, options, () => isStopped)) postMessage({ kind: "piece", piece });
    return { tokens: talk.tokens };
  },
  stop: () => void (isStopped = true),
  reset: () => ({ messages: talk.reset(), tokens: talk.tokens }),
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
