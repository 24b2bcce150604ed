// The certificate on the page: numbers, curve, votes, words.

import { down, up } from "/shown.js";

const NORMS = { l2: "ℓ₂", linf: "ℓ∞" };
const MOST_ROWS = 12;
const SPEAK_EVERY = 2500;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);

export const shownRadius = (radius) => down(radius, 4);
const count = (number) => number.toLocaleString("en");
const norm = (name) => NORMS[name] ?? name;

export class Result {
  constructor() {
    this.certificate = null;
  }

  start(plan) {
    this.plan = plan;
    this.points = [];
    this.certificate = null;
    this.spokenAt = 0;
    byId("problem").hidden = true;
    byId("shown").hidden = true;
    byId("waiting").hidden = false;
    byId("waiting").textContent = "Drawing noise…";
    byId("spoken").textContent = "Drawing noise.";
    if (matchMedia("(max-width: 56rem)").matches) byId("answer").scrollIntoView();
  }

  show(certificate) {
    this.certificate = certificate;
    this.points.push([certificate.drawn, certificate.radius]);
    byId("waiting").hidden = true;
    byId("shown").hidden = false;
    this.#numbers();
    this.#curve();
    this.#votes();
    this.#words();
    if (performance.now() - this.spokenAt > SPEAK_EVERY) this.#speak();
  }

  // `how` says why there will be no more.
  end(how) {
    if (this.certificate === null) {
      byId("waiting").textContent = `${how} No certificate yet.`;
      byId("spoken").textContent = byId("waiting").textContent;
      return;
    }
    this.#speak(how);
    byId("drawn").textContent += `. ${how}`;
  }

  fail(message) {
    byId("problem").hidden = false;
    byId("problem").textContent = message;
    byId("spoken").textContent = "";
    if (this.certificate === null) byId("waiting").hidden = true;
    else byId("problem").textContent += " The certificate below holds all the same.";
  }

  #numbers() {
    const { predict, radius, norm: name, drawn, model } = this.certificate;
    byId("class").textContent = predict < 0 ? "abstained" : predict;
    byId("radius").textContent = predict < 0 ? "none" : shownRadius(radius);
    byId("drawn").textContent = `${count(drawn)} of ${count(this.plan.n)} draws`;
    byId("progress").max = this.plan.n;
    byId("progress").value = drawn;
    byId("meaning").textContent = meaning(predict, radius, name, model.input_shape);
  }

  // Against the logarithm of the draws: a look comes whenever their number has grown by a part.
  #curve() {
    const [width, height, margin, bottom, top] = [320, 130, 8, 22, 26];
    const first = this.points[0][0];
    const [last] = this.points.slice(-1);
    const highest = Math.max(last[1], Number.MIN_VALUE);
    const span = Math.log(this.plan.n / first) || 1;
    const x = (drawn) => margin + ((width - 2 * margin) * Math.log(drawn / first)) / span;
    const y = (radius) => height - bottom - (height - bottom - top) * (radius / highest);
    const corners = this.points.map(([drawn, radius]) => `${x(drawn).toFixed(1)},${y(radius).toFixed(1)}`);
    const axis = { x1: margin, x2: width - margin, y1: height - bottom, y2: height - bottom, class: "axis" };
    byId("curve").replaceChildren(
      svg("line", axis),
      svg("polyline", { points: corners.join(" "), class: "line" }),
      ...this.points.map(([drawn, radius]) => svg("circle", { cx: x(drawn), cy: y(radius), r: 2, class: "dot" })),
      svg("circle", { cx: x(last[0]), cy: y(last[1]), r: 4, class: "dot" }),
      svg("text", { x: margin, y: height - 6 }, count(first)),
      svg("text", { x: width - margin, y: height - 6, "text-anchor": "end" }, `${count(this.plan.n)} draws`),
      svg("text", { x: margin, y: 11 }, `radius ${shownRadius(last[1])}`),
    );
  }

  #votes() {
    const { counts, n, predict } = this.certificate;
    let rows = counts.map((votes, label) => ({ votes, label }));
    byId("votes").caption.textContent = "How often the network answered each class under noise";
    if (rows.length > MOST_ROWS) {
      rows = rows.sort((a, b) => b.votes - a.votes).slice(0, MOST_ROWS);
      byId("votes").caption.textContent += `, the ${MOST_ROWS} most frequent of ${count(counts.length)}`;
    }
    const body = byId("votes").tBodies[0];
    body.replaceChildren(...rows.map(({ votes, label }) => {
      const row = document.createElement("tr");
      row.classList.toggle("chosen", label === predict);
      const bar = document.createElement("span");
      bar.className = "bar";
      bar.style.width = `${(100 * votes) / n}%`;
      const share = document.createElement("td");
      share.append(bar);
      row.append(head(label), share, cell(count(votes)));
      return row;
    }));
  }

  #words() {
    const { statement, model, certificate_id, pixels_sha256, p_lower, bound, select_counts, n0 } = this.certificate;
    byId("statement").textContent = statement;
    const facts = {
      "probability, at least": `${down(p_lower, 6)} (${bound})`,
      "class chosen by": `${count(Math.max(...select_counts))} of ${count(n0)} draws`,
      model: `${model.name}, version ${model.version}, digest ${model.digest}`,
      pixels: this.checked ?? pixels_sha256,
      certificate: certificate_id,
    };
    byId("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => {
      const [term, text] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      text.textContent = value;
      return [term, text];
    }));
  }

  #speak(how = "") {
    this.spokenAt = performance.now();
    const { predict, radius, drawn } = this.certificate;
    const answer = predict < 0 ? "Abstained" : `Class ${predict}, certified radius ${shownRadius(radius)}`;
    byId("spoken").textContent = `${answer}, after ${count(drawn)} draws. ${how}`;
  }
}

function meaning(predict, radius, name, shape) {
  if (predict < 0) return "Nothing is certified for these pixels so far.";
  const values = shape.reduce((product, side) => product * side, 1);
  const each = name === "linf" ? radius : name === "l2" ? radius / Math.sqrt(values) : null;
  const start = `No pixels at ${norm(name)} distance below ${shownRadius(radius)} from these are answered otherwise`;
  if (each === null) return `${start}.`;
  return name === "linf"
    ? `${start}: every value may change by up to ${down(each, 1, 255)} of its 255 levels.`
    : `${start}. To get that far, one has to change every value by ` +
      `${up(each, 1, 255)} of its 255 levels, say, or fewer of them by more.`;
}

function svg(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

function head(text) {
  const element = document.createElement("th");
  element.scope = "row";
  element.textContent = text;
  return element;
}

function cell(text) {
  const element = document.createElement("td");
  element.textContent = text;
  return element;
}
