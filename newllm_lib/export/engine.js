// New-LLM, its tokenizer and the choice of the next token, as a page runs them: in a worker, without a library.
// The equations are those of models/modeling_newllm.py, the order of the state is that of `state_parts` there.
//
// Dimensions: E hidden_size, C context_size, H intermediate_size, L layers, V vocabulary, S = L (C + 2 E) numbers of state.
"use strict";

// GPT-2's pieces of text, as tokenizers' ByteLevel cuts them.
const PIECES = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

// White space as Python's strip() knows it; trim() knows other characters.
const SPACE = "(?:[^\\S\\ufeff]|[\\x1c-\\x1f\\x85])+";
const lstrip = (text) => text.replace(new RegExp(`^${SPACE}`), ""), rstrip = (text) => text.replace(new RegExp(`${SPACE}$`), "");

const sigmoid = (z) => 1 / (1 + Math.exp(-z));

// Half precision -> single, for all 65,536 halves.
const SINGLES = Float32Array.from({ length: 65536 }, (_, h) => {
  const exponent = (h >> 10) & 31, fraction = (h & 1023) / 1024;
  return (h >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
});

class NewLLM {
  /** config: model's; layout: [[name, shape, are they 8-bit], ...] in the order of `bytes`: halves, or of an 8-bit matrix
   * a scale (a half) for each row, then its bytes, of an even number. */
  constructor(config, layout, bytes) {
    const { hidden_size: E, context_size: C, intermediate_size: H, num_hidden_layers: L, vocab_size: V } = config;
    Object.assign(this, { E, C, H, L, V, S: L * (C + 2 * E), eps: config.layer_norm_eps });
    this.layers = Array.from({ length: L }, () => ({})); // each by the names of its tensors
    let offset = 0;
    const halves = (count) => Float32Array.from(new Uint16Array(bytes.buffer, (offset += 2 * count) - 2 * count, count), (half) => SINGLES[half]);
    const read = ([rows, width = 1], isSmall) => {
      if (!isSmall) return halves(rows * width);
      const scales = halves(rows), small = new Int8Array(bytes.buffer, offset, rows * width);
      offset += small.length + (small.length % 2);
      return Float32Array.from(small, (value, i) => value * scales[Math.floor(i / width)]);
    };
    for (const [name, shape, isSmall] of layout) {
      const [, layer, rest] = name.match(/^model\.(?:layers\.(\d+)\.)?(.+)$/);
      (layer ? this.layers[layer] : this)[rest] = read(shape, isSmall);
    }
    const [wide, widest] = [Math.max(E, C), Math.max(E, C, H)];
    this.room = Array.from({ length: 6 }, (_, i) => new Float32Array(i < 2 ? widest : wide));
    this.x = new Float32Array(E);
    this.logits = new Float32Array(V);
  }

  /** One token: changes `state` [S] in place; gives the logits of the next token [V], which the next call overwrites. */
  step(token, state, wantsLogits = true) {
    const { E, C, H, L, x, eps } = this, [a, b, u, shifted, z, d] = this.room, table = this["embed_tokens.weight"];
    for (let i = 0; i < E; i++) x[i] = table[token * E + i] * Math.sqrt(E);
    for (let l = 0; l < L; l++) {
      const p = this.layers[l], c = state.subarray(l * C, (l + 1) * C);
      const lastU = state.subarray(L * C + l * E, L * C + (l + 1) * E);
      const lastV = state.subarray(L * (C + E) + l * E, L * (C + E) + (l + 1) * E);
      const shift = (last, mu) => {
        for (let i = 0; i < E; i++) shifted[i] = u[i] + p.shift_bias[mu * E + i] * (last[i] - u[i]);
        return shifted;
      };
      normed(x, p["input_norm.weight"], E, eps, u);
      product(p["forget_gate.weight"], shift(lastU, 0), C, E, z, p["forget_gate.bias"]);
      product(p["delta.weight"], shift(lastU, 1), C, E, d);
      for (let i = 0; i < C; i++) c[i] = sigmoid(z[i]) * c[i] + sigmoid(-z[i]) * d[i];
      product(p["output_gate.weight"], shift(lastU, 2), C, E, z);
      lastU.set(u.subarray(0, E));
      for (let i = 0; i < C; i++) d[i] = c[i] * z[i] * sigmoid(z[i]);
      product(p["context_out.weight"], d, E, C, a);
      for (let i = 0; i < E; i++) x[i] += a[i];
      normed(x, p["mlp_norm.weight"], E, eps, u);
      shift(lastV, 3);
      lastV.set(u.subarray(0, E));
      product(p["mlp_in.weight"], shifted, H, E, a);
      product(p["mlp_gate.weight"], shifted, H, E, b);
      for (let i = 0; i < H; i++) a[i] *= b[i] * sigmoid(b[i]);
      product(p["mlp_out.weight"], a, E, H, b);
      for (let i = 0; i < E; i++) x[i] += b[i];
    }
    if (!wantsLogits) return null;
    normed(x, this["norm.weight"], E, eps, u);
    product(this["projection.weight"], u, E, E, a, this["projection.bias"]);
    normed(a, this["head_norm.weight"], E, eps, u);
    product(table, u, this.V, E, this.logits);
    return this.logits;
  }
}

/** out = weight * (x - mean) / deviation, over the first n. */
function normed(x, weight, n, eps, out) {
  let mean = 0, variance = 0;
  for (let i = 0; i < n; i++) mean += x[i] / n;
  for (let i = 0; i < n; i++) variance += (x[i] - mean) ** 2 / n;
  const scale = 1 / Math.sqrt(variance + eps);
  for (let i = 0; i < n; i++) out[i] = (x[i] - mean) * scale * weight[i];
}

/** out [M] = matrix [M, N] * x [N] (+ bias [M]). Four sums at a time, which do not wait for each other. */
function product(matrix, x, M, N, out, bias = null) {
  for (let m = 0, at = 0; m < M; m++) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0, n = 0;
    for (; n + 3 < N; n += 4, at += 4) {
      s0 += matrix[at] * x[n];
      s1 += matrix[at + 1] * x[n + 1];
      s2 += matrix[at + 2] * x[n + 2];
      s3 += matrix[at + 3] * x[n + 3];
    }
    for (; n < N; n++, at++) s0 += matrix[at] * x[n];
    out[m] = s0 + s1 + s2 + s3 + (bias ? bias[m] : 0);
  }
}

class Tokenizer {
  /** tokens: [V] strings in ByteLevel's letters; merges: ["a b", ...]; special: how many are no text -> id by name. */
  constructor({ tokens, merges, special }) {
    this.tokens = tokens;
    this.special = special;
    this.ids = new Map(tokens.map((token, id) => [token, id]));
    for (const name of Object.keys(special)) this.ids.delete(name); // a text that spells one is ordinary text
    this.ranks = new Map(merges.map((pair, rank) => [pair, rank]));
    this.isSpecial = new Set(Object.values(special));
    // Every byte has a letter: itself where it can be seen, else one beyond 255.
    const seen = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    let beyond = 256;
    this.letters = Array.from({ length: 256 }, (_, b) => String.fromCodePoint(seen(b) ? b : beyond++));
    this.bytes = new Map(this.letters.map((letter, b) => [letter, b]));
  }

  encode(text) {
    return (text.match(PIECES) || []).flatMap((piece) => this.merged(piece));
  }

  /** The ids of one piece: the pair that was learned first is joined first. */
  merged(piece) {
    const parts = Array.from(new TextEncoder().encode(piece), (b) => this.letters[b]);
    while (parts.length > 1) {
      let best = Infinity, pair = "";
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`);
        if (rank < best) [best, pair] = [rank, `${parts[i]} ${parts[i + 1]}`];
      }
      if (best === Infinity) break;
      for (let i = 0; i + 1 < parts.length; i++) {
        if (`${parts[i]} ${parts[i + 1]}` === pair) parts.splice(i, 2, parts[i] + parts[i + 1]);
      }
    }
    return parts.map((part) => this.ids.get(part));
  }

  decode(ids) {
    const letters = ids.flatMap((id) => (this.isSpecial.has(id) ? [] : Array.from(this.tokens[id])));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(letters, (letter) => this.bytes.get(letter)));
  }
}

/** Numbers in [0, 1) that a seed decides (mulberry32 of T. Ettinger). */
function randomNumbers(seed) {
  return () => {
    let t = (seed = (seed + 0x6d2b79f5) | 0);
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The next token from logits [V], in the order of transformers' warpers; temperature 0 takes the likeliest. */
function chosen(logits, history, { temperature, topP, penalty }, random) {
  const scores = Float64Array.from(logits);
  if (penalty !== 1) for (const id of new Set(history)) scores[id] *= scores[id] < 0 ? penalty : 1 / penalty;
  const order = Array.from(scores.keys()).sort((one, other) => scores[other] - scores[one]);
  if (temperature === 0) return order[0];
  const shares = order.map((id) => Math.exp((scores[id] - scores[order[0]]) / temperature));
  const whole = shares.reduce((a, b) => a + b);
  let kept = 0, count = 0;
  do kept += shares[count++];
  while (count < order.length && kept < topP * whole);
  let left = random() * kept;
  return order[shares.slice(0, count).findIndex((share) => (left -= share) < 0)] ?? order[0];
}

/** Let what others have sent get through, such as "stop". */
const pause = () => new Promise((done) => setTimeout(done));

/** A conversation, or a text that goes on: what `Chat` and `TokenStream` are in Python. */
class Talk {
  constructor({ config, layout, tokenizer, memory, chats, ends }, weights) {
    this.model = new NewLLM(config, layout, Uint8Array.from(atob(weights), (letter) => letter.charCodeAt(0)));
    this.tokenizer = new Tokenizer(tokenizer);
    Object.assign(this, { header: memory, chats, ends });
    this.reset();
  }

  reset(start = null, startTokens = 0) {
    Object.assign(this, { start, startTokens });
    this.begin();
    return (this.messages = []);
  }

  begin() {
    this.state = this.start ? this.start.slice() : new Float32Array(this.model.S);
    this.read = []; // the tokens that the state is of, after those of `start`
    this.tokens = this.startTokens;
  }

  /** The conversation as it was in training; a memory holds the token that begins it already. */
  ids(isTurnOpen) {
    const { special } = this.tokenizer, ids = this.startTokens ? [] : [special["<|endoftext|>"]];
    if (!this.chats) return ids.concat(this.tokenizer.encode(this.messages.map(({ content }) => content).join("")));
    for (const { role, content } of this.messages) {
      ids.push(special[`<|${role}|>`], ...this.tokenizer.encode(` ${content}`));
      if (role === "assistant") ids.push(special["<|end|>"]);
    }
    return isTurnOpen ? [...ids, special["<|assistant|>"]] : ids;
  }

  readOne(id, wantsLogits) {
    const logits = this.model.step(id, this.state, wantsLogits);
    this.tokens = this.startTokens + this.read.push(id);
    this.seen?.();
    return logits;
  }

  /** Read `ids` to their end, as far as the state does not hold them yet; the logits after the last. */
  async catchUp(ids) {
    if (this.read.length >= ids.length || this.read.some((id, i) => id !== ids[i])) this.begin();
    let logits = null;
    for (let i = this.read.length; i < ids.length; i++) {
      logits = this.readOne(ids[i], i === ids.length - 1);
      if (i % 64 === 63) await pause();
    }
    return logits;
  }

  /** Answer `text`, or go on after it: pieces of text as they come, until an end, `most` tokens, or `isStopped()`. */
  async *reply(text, options, isStopped = () => false) {
    this.messages.push({ role: "user", content: text });
    const random = randomNumbers(options.seed), ids = this.ids(true);
    let pending = []; // a character may be spread over tokens, and is shown when it is whole
    let said = "", logits = await this.catchUp(ids);
    try {
      for (let count = 1; count <= options.most && !isStopped(); count++) {
        const token = chosen(logits, ids, options, random);
        if (this.ends.includes(token)) break;
        ids.push(token);
        pending.push(token);
        let piece = this.tokenizer.decode(pending);
        if (piece.endsWith("\ufffd")) piece = "";
        else pending = [];
        if (this.chats && !said) piece = lstrip(piece);
        said += piece;
        yield piece;
        if (count % 8 === 0) await pause();
        if (count < options.most) logits = this.readOne(token, true);
      }
    } finally {
      this.messages.push({ role: "assistant", content: this.chats ? rstrip(said) : said });
    }
  }

  /** The memory as a safetensors file, which `newllm chat` loads. */
  async memory(withWords) {
    const ids = this.ids(false);
    if (ids.length !== this.read.length || this.read.some((id, i) => id !== ids[i])) await this.catchUp(ids);
    const metadata = { ...this.header, tokens: String(this.tokens) };
    if (withWords) metadata.messages = JSON.stringify(this.messages);
    const state = { dtype: "F32", shape: [1, this.model.S], data_offsets: [0, 4 * this.model.S] };
    let header = JSON.stringify({ __metadata__: metadata, state });
    const bytes = (text) => new TextEncoder().encode(text);
    header += " ".repeat((8 - (bytes(header).length % 8)) % 8);
    const length = new BigUint64Array([BigInt(bytes(header).length)]);
    return new Blob([length, bytes(header), this.state]);
  }

  /** Go on from a file that this page or `newllm chat` has saved. Throws a sentence for any other file. */
  remember(buffer) {
    let header, state;
    try {
      const length = Number(new DataView(buffer).getBigUint64(0, true));
      header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
      state = new Float32Array(buffer.slice(8 + length, 8 + length + 4 * this.model.S));
      if (header.__metadata__.format !== this.header.format || header.state.shape[1] !== this.model.S) throw 0;
      if (state.length !== this.model.S || !state.every(Number.isFinite)) throw 0;
    } catch {
      throw new Error("no memory");
    }
    if (header.__metadata__.weights !== this.header.weights) throw new Error("other model");
    this.reset(state, Number(header.__metadata__.tokens));
    return JSON.parse(header.__metadata__.messages || "[]");
  }
}

globalThis.newllm = { Talk, NewLLM, Tokenizer, chosen, randomNumbers, lstrip, rstrip };
