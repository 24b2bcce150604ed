// Puts the page together: an image, a plan, and the certificate as it grows.

import { Pad } from "/pad.js";
import { Result, shownRadius } from "/result.js";
import { visible } from "/shown.js";
import { Refused, events, parsed, refusal } from "/stream.js";

const byId = (id) => document.getElementById(id);

const TARGETS = {
  decide: { name: "Radius to decide", value: 0.5, max: "" },
  precision: { name: "Part of the radius that may be missing", value: 0.05, max: 1 },
  budget: { name: "Seconds", value: 5, max: "" },
};

const result = new Result();
let running = null;

async function main() {
  const answer = await fetch("/v1/model");
  if (!answer.ok) throw await refusal(answer);
  const model = parsed(await answer.text());
  const [height, width, channels] = model.input_shape;
  byId("model").textContent =
    `${model.name}, version ${model.version}: ${model.num_classes} classes, ` +
    `${model.noise_family} noise with sigma ${model.sigma}.`;
  byId("size").textContent = `${width} × ${height} pixels`;
  if (channels !== 1 && channels !== 3) {
    throw new Error(`This page draws grey and colour images; the model takes ${channels} channels.`);
  }
  limitPlan(model.limits);
  const pad = new Pad(byId("pad"), byId("cursor"), byId("preview"), model.input_shape, changed);
  connectImage(pad, channels);
  connectPlan(pad);
}

function changed(pad) {
  byId("source").textContent = pad.origin;
  allow(pad);
}

function allow(pad) {
  byId("certify").disabled = running !== null || pad.empty;
  byId("halt").disabled = running === null;
}

function limitPlan({ max_n0, max_n, min_alpha, max_seconds }) {
  byId("n0").max = max_n0;
  byId("n").max = max_n;
  byId("alpha").min = min_alpha;
  byId("alpha").max = 0.5;
  TARGETS.budget.max = max_seconds;
}

function connectImage(pad, channels) {
  const open = async (file) => {
    if (!file) return;
    try {
      await pad.open(file);
      byId("problem").hidden = true;
    } catch {
      result.fail(`${visible(file.name)} is not an image that this browser can read.`);
    }
  };
  byId("clear").addEventListener("click", () => pad.clear());
  byId("invert").addEventListener("click", () => pad.invert());
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", (event) => {
    open(event.target.files[0]);
    event.target.value = "";  // so that the same file can be chosen again
  });
  byId("ink-label").hidden = channels === 1;
  byId("ink").addEventListener("input", (event) => { pad.ink = event.target.value; });
  // Anywhere on the page, or the browser would leave it for the picture.
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("frame").classList.add("over");
  });
  document.addEventListener("dragleave", () => byId("frame").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("frame").classList.remove("over");
    open(event.dataTransfer.files[0]);
  });
}

function connectPlan(pad) {
  byId("stop").addEventListener("change", showTarget);
  showTarget();
  byId("halt").addEventListener("click", () => running?.abort());
  byId("plan").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running !== null || pad.empty) return;
    running = new AbortController();
    allow(pad);
    await certify(pad.pixels(), pad, running.signal);
    running = null;
    allow(pad);
  });
  byId("save").addEventListener("click", save);
}

function showTarget() {
  const target = TARGETS[byId("stop").value];
  byId("target-label").hidden = target === undefined;
  byId("target").required = target !== undefined;
  if (target === undefined) return;
  byId("target-name").textContent = target.name;
  byId("target").value = target.value;
  byId("target").max = target.max;
}

function plan() {
  const stop = byId("stop").value;
  return {
    n0: byId("n0").valueAsNumber,
    n: byId("n").valueAsNumber,
    alpha: byId("alpha").valueAsNumber,
    bilateral: byId("bilateral").checked,
    ...(stop === "fixed" ? {} : { [stop]: byId("target").valueAsNumber }),
  };
}

async function certify(values, pad, signal) {
  const asked = plan();
  result.start(asked);
  try {
    const ours = await digest(values);
    const pixels = { shape: [pad.height, pad.width, pad.channels], uint8: base64(values) };
    for await (const { kind, data } of events("/v1/certify/stream", { ...asked, pixels }, signal)) {
      if (kind === "refusal") throw new Refused(data);
      if (kind !== "certificate") continue;
      if (ours !== null && data.pixels_sha256 !== ours) {
        throw new Error("The certificate is about other pixels than this page sent.");
      }
      result.checked = `SHA-256 ${data.pixels_sha256}` + (ours === null ? "" : ", as this page computes it");
      result.show(data);
    }
    result.end("Finished.");
  } catch (error) {
    if (signal.aborted) result.end("Stopped by you.");
    else result.fail(error.message);
  }
}

// What the certificate must name: float32, little-endian. Null where browsers withhold hashing,
// which is on pages that are neither local nor encrypted.
async function digest(values) {
  if (!globalThis.crypto?.subtle) return null;
  const floats = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((value, i) => floats.setFloat32(4 * i, value / 255, true));
  const hash = await crypto.subtle.digest("SHA-256", floats.buffer);
  return Array.from(new Uint8Array(hash), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function base64(values) {
  let text = "";
  for (const value of values) text += String.fromCharCode(value);
  return btoa(text);
}

function save() {
  const { certificate } = result;
  const url = URL.createObjectURL(new Blob([JSON.stringify(certificate, null, 2)], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `certificate-${certificate.predict}-${shownRadius(certificate.radius)}.json`;
  link.click();
  URL.revokeObjectURL(url);
}

main().catch((error) => {
  byId("model").textContent = "No model can be certified now.";
  result.fail(error.message);
});
