"use strict";

const SVG = "http://www.w3.org/2000/svg";
const HUES = ["#ff6b5e", "#35b8ff", "#ffc53d", "#7ddb5c", "#c78bff", "#ff8fc7", "#2fd6c0", "#ff9a3d", "#8fa2ff", "#d6e04a"];
const TRIM = 4; // Pixels of the thumbnail within which a corner of an outline is rounded.

const find = (id) => document.getElementById(id);

// Masks. A mask is COCO's compressed run-length encoding, column by column, at the size of the thumbnail.

function decodeRuns(counts) {
  const runs = [];
  for (let i = 0; i < counts.length; ) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = counts.charCodeAt(i++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/** The mask as bytes, column by column, inside a border of zeros one pixel wide. */
function decodeMask(counts, width, height) {
  const stride = height + 2;
  const mask = new Uint8Array((width + 2) * stride);
  let position = 0;
  decodeRuns(counts).forEach((run, i) => {
    if (i % 2) {
      for (let p = position; p < position + run; p++) {
        mask[(Math.floor(p / height) + 1) * stride + (p % height) + 1] = 1;
      }
    }
    position += run;
  });
  return mask;
}

/** The corners of every closed boundary of a mask, walked along the pixel edges with the inside on the right. */
function traceLoops(mask, width, height) {
  const stride = height + 2;
  const at = (x, y) => (x + 1) * stride + y + 1;
  const step = [[1, 0], [0, 1], [-1, 0], [0, -1]]; // east, south, west, north
  const ahead = [[0, -1], [0, 0], [-1, 0], [-1, -1]]; // the pixel ahead on the left, by heading
  const seen = new Uint8Array(mask.length);
  const loops = [];
  for (let x0 = 0; x0 < width; x0++) {
    for (let y0 = 0; y0 < height; y0++) {
      if (!mask[at(x0, y0)] || mask[at(x0, y0 - 1)] || seen[at(x0, y0)]) continue;
      const corners = [];
      let [x, y, heading] = [x0, y0, 0];
      do {
        if (heading === 0) seen[at(x, y)] = 1;
        x += step[heading][0];
        y += step[heading][1];
        const left = ahead[heading];
        const right = ahead[(heading + 1) % 4];
        const turn = !mask[at(x + right[0], y + right[1])] ? 1 : mask[at(x + left[0], y + left[1])] ? 3 : 0;
        if (turn) corners.push([x, y]);
        heading = (heading + turn) % 4;
      } while (x !== x0 || y !== y0 || heading !== 0);
      loops.push(corners);
    }
  }
  return loops;
}

/** An SVG path along the corners, each rounded within TRIM pixels, so that stairs read as the slope they stand for. */
function pathOf(loops) {
  const towards = ([x, y], [u, v]) => {
    const length = Math.abs(u - x) + Math.abs(v - y);
    const part = Math.min(length / 2, TRIM) / length;
    return `${x + (u - x) * part} ${y + (v - y) * part}`;
  };
  return loops
    .map((corners) =>
      corners
        .map((corner, i) => {
          const before = corners.at(i - 1);
          const after = corners[(i + 1) % corners.length];
          return `${i ? "L" : "M"}${towards(corner, before)}Q${corner[0]} ${corner[1]} ${towards(corner, after)}`;
        })
        .join("") + "Z",
    )
    .join("");
}

function svg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function html(tag, className, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...children);
  return element;
}

/** Masks and boxes of one image; the larger lie below, so that the smaller can be pointed at. */
function drawOverlay(image) {
  const [width, height] = image.thumbnail;
  const overlay = svg("svg", { class: "overlay", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const order = image.instances.map((_, i) => i).sort((a, b) => image.instances[b].area - image.instances[a].area);
  for (const i of order) {
    const { mask, box, colour } = image.instances[i];
    const group = svg("g", { "data-instance": i, style: `--colour: ${colour}` });
    if (mask !== null) {
      const d = pathOf(traceLoops(decodeMask(mask, width, height), width, height));
      group.append(svg("path", { class: "mask", d, "fill-rule": "evenodd" }));
    }
    group.append(svg("rect", { class: "box", x: box[0], y: box[1], width: box[2], height: box[3] }));
    overlay.append(group);
  }
  return overlay;
}

const number = new Intl.NumberFormat("en");
const percent = (share) => `${(share * 100).toFixed(share < 0.0995 ? 1 : 0)}%`;
const plural = (count, noun) => `${number.format(count)} ${noun}${count === 1 ? "" : "s"}`;
