"use strict";
// The texts and heatmaps of the page, and sums over them. Nothing here touches what is shown.

const data = JSON.parse(document.getElementById("data").textContent);
const numTokens = data.tokens.length, numPrompt = data.promptLength, numSteps = numTokens - numPrompt;

// Step n has a score for each of the numPrompt + n tokens before it; steps follow each other.
const rowStart = step => step * numPrompt + step * (step - 1) / 2;

// Scores are signed bytes, deflated: the root of a score relative to the largest of its step, special tokens apart from others.
async function unpack({ scores, scale, levels }) {
  const bytes = Uint8Array.from(atob(scores), c => c.charCodeAt(0));
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const quantised = new Int8Array(await new Response(inflated).arrayBuffer());
  const values = new Float32Array(quantised.length);
  for (let step = 0, k = 0; step < numSteps; step++) {
    for (let i = 0; i < numPrompt + step; i++, k++) {
      const root = quantised[k] / levels;
      values[k] = root * Math.abs(root) * scale[step][data.special[i]];
    }
  }
  return values;
}

// What each token before the steps first..last-1 contributed to them in sum.
function contributions(values, first, last) {
  const sum = new Float32Array(numTokens);
  for (let step = first; step < last; step++) {
    const start = rowStart(step);
    for (let i = 0; i < numPrompt + first; i++) sum[i] += values[start + i];
  }
  return sum;
}

// For each step, what the tokens first..last-1 contributed to it, and the sizes of all that is counted.
// Scores of different steps compare only relative to their steps' sums.
function received(values, first, last, counted) {
  const from = new Float32Array(numSteps), all = new Float32Array(numSteps);
  for (let step = 0, k = 0; step < numSteps; step++) {
    for (let i = 0; i < numPrompt + step; i++, k++) {
      if (!counted(i)) continue;
      all[step] += Math.abs(values[k]);
      if (i >= first && i < last) from[step] += values[k];
    }
  }
  return { from, all };
}

// Units of a level: tokens first..last-1 each.
function unitsOf(sizes) {
  let last = 0;
  return sizes.map(size => {
    const first = last;
    last += size;
    const text = data.tokens.slice(first, last).join("");
    const special = data.special.slice(first, last).every(Boolean);
    const name = data.names?.[first];
    return { first, last, text, special, name, generated: first >= numPrompt, parts: [] };
  });
}
