// The texts and heatmaps of a report, and shares of them. Nothing here touches what is shown.

class Explained {
  constructor(data) {
    Object.assign(this, data);  // see `_data` of html.py
    this.numTokens = data.tokens.length;
    this.numSteps = this.numTokens - data.promptLength;
    this.isMark = new Set(data.marks);
    this.isUnexplained = new Set(data.unexplained);  // generated tokens without a heatmap
    this.heatmaps = new Map();
  }

  // Where the scores of a generated token begin: those of a token before it number one less.
  rowStart(step) {
    return step * (this.promptLength + this.own) + step * (step - 1) / 2;
  }

  kind(i) {
    return this.kinds[this.classes[i]];
  }

  // Units of a level: tokens first..last-1 each.
  units({ sizes, names }) {
    let last = 0;
    return (sizes ?? this.tokens.map(() => 1)).map((size, u) => {
      const first = last;
      last += size;
      const inside = Array.from({ length: size }, (_, k) => first + k);
      const image = this.images.find(place => place.first <= first && first < place.last);
      return {
        first, last, image, generated: first >= this.promptLength,
        text: image ? "" : this.tokens.slice(first, last).join(""),
        name: image ? this.imageName(image, first, size) : names?.[u] ?? null,
        isMark: inside.every(i => this.isMark.has(i)),
        isTemplate: inside.every(i => ["special", "template"].includes(this.kind(i))), parts: [],
      };
    });
  }

  // The classes of tokens that may be sources.
  candidates({ only }, ignored) {
    return this.kinds.map(kind => kind === "outside" ? !only : kind !== "rest" && !ignored.has(kind));
  }

  imageName({ name, first, last, positions }, token, size) {
    const patch = positions.indexOf(token) + 1;
    return size > 1 || last - first === 1 ? name : `${name}, ${patch ? `patch ${patch}` : "a mark"}`;
  }

  // The classes of tokens of images.
  get ofImages() {
    const kind = this.kinds.includes("image") ? "image" : "outside";
    return this.kinds.map(each => each === kind);
  }

  // The heatmap of all layers together, or of one.
  async heatmap(layer = "all") {
    if (!this.heatmaps.has(layer)) this.heatmaps.set(layer, Heatmap.unpack(this, layer === "all" ? this.summed : this.layers[layer]));
    return this.heatmaps.get(layer);
  }

  // The generated tokens of a unit that are explained.
  explainedOf(first, last) {
    return Array.from({ length: last - first }, (_, k) => first + k).filter(i => i >= this.promptLength && !this.isUnexplained.has(i));
  }

  // The probability of a unit for each of its explained tokens: the geometric mean. A long unit is not less likely for being long.
  probability(first, last) {
    const known = this.explainedOf(first, last);
    return Math.exp(known.reduce((log, i) => log + Math.log(this.probabilities[i - this.promptLength]), 0) / known.length);
  }
}

// Signed bytes, row after row, relative to the largest score of each row and class of tokens; `packed.py` describes the buffer.
class Heatmap {
  static async unpack(explained, { scores, levels }) {
    const bytes = Uint8Array.from(atob(scores), c => c.charCodeAt(0));
    const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Heatmap(explained, await new Response(inflated).arrayBuffer(), levels);
  }

  constructor(explained, buffer, levels) {
    const size = explained.numSteps * explained.kinds.length;
    this.explained = explained;
    this.step = Float64Array.from(new Float32Array(buffer, 0, size), x => x / levels);
    this.totals = new Float32Array(buffer, 4 * size, size);
    this.quantised = new Int8Array(explained.rowStart(explained.numSteps));
    const bits = new Uint8Array(buffer, 8 * size), values = new Int8Array(buffer, 8 * size + Math.ceil(this.quantised.length / 8));
    for (let k = 0, next = 0; k < this.quantised.length; k++) if (bits[k >> 3] >> (k & 7) & 1) this.quantised[k] = values[next++];
    this.highest = new Map();
  }

  // The largest score of a candidate in each row.
  largest(candidates) {
    const key = candidates.join(), { classes, kinds, numSteps, promptLength, own } = this.explained;
    if (!this.highest.has(key)) {
      const found = new Float64Array(numSteps);
      for (let row = 0, k = 0; row < numSteps; row++) {
        const most = kinds.map(() => 0);
        for (let i = 0; i < promptLength + row + own; i++, k++) most[classes[i]] = Math.max(most[classes[i]], Math.abs(this.quantised[k]));
        found[row] = Math.max(0, ...most.map((q, kind) => candidates[kind] ? q * this.step[row * kinds.length + kind] : 0));
      }
      this.highest.set(key, found);
    }
    return this.highest.get(key);
  }

  // What the tokens first..last-1 rest on, by units: shares as `Explanation.sources` has them (scores that count, over the sum of
  // all that count), what has scores that do not count, and how much of all scores is not counted, by kind.
  basis(first, last, unitOfToken, numUnits, candidates) {
    const { explained, quantised } = this, { classes, kinds, promptLength, own, threshold } = explained;
    const shares = new Float64Array(numUnits), weak = new Uint8Array(numUnits), largest = this.largest(candidates);
    const sums = kinds.map(() => 0);
    const least = threshold * largest.subarray(first - promptLength, last - promptLength).reduce((a, b) => Math.max(a, b), 0);
    let counted = 0;
    for (let row = first - promptLength; row < last - promptLength; row++) {
      const start = explained.rowStart(row), steps = row * kinds.length;
      kinds.forEach((_, kind) => { sums[kind] += this.totals[steps + kind]; });
      for (let i = 0; i < promptLength + row + own; i++) {
        const q = quantised[start + i], kind = classes[i];
        if (!q || !candidates[kind]) continue;
        const score = q * this.step[steps + kind];
        weak[unitOfToken[i]] = 1;
        if (Math.abs(score) < least) continue;
        shares[unitOfToken[i]] += score;
        counted += Math.abs(score);
      }
    }
    const all = shares.reduce((sum, share) => sum + Math.abs(share), 0), total = sums.reduce((a, b) => a + b, 0);
    const leftOut = { weak: -counted };
    sums.forEach((sum, kind) => {
      const name = candidates[kind] ? "weak" : kinds[kind];
      leftOut[name] = (leftOut[name] ?? 0) + sum;
    });
    return {
      shares: all > 0 ? shares.map(share => share / all) : shares,
      weak,
      leftOut: Object.entries(leftOut).map(([kind, sum]) => [kind, total > 0 ? sum / total : 0]).filter(([, share]) => share >= 0.005),
    };
  }
}
