// How numbers and foreign text are shown: as tfmacer/common/decimals.py and tfmacer/common/text.py do it.

// The largest number with so many digits after the point that is not above times * value, as text.
// Exact: a double is a fraction, and what counts is its value, not the text it came from.
export const down = (value, digits, times = 1) => rounded(value, digits, times, -1n);

// The smallest one that is not below it.
export const up = (value, digits, times = 1) => rounded(value, digits, times, 1n);

// Every character that shows nothing, or changes what is shown, spelled out.
export const visible = (text) => text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, escaped);

const NAMED = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

function rounded(value, digits, times, side) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  const [above, below] = fraction(value);
  const scaled = above * BigInt(times) * 10n ** BigInt(digits);
  let units = scaled / below;  // toward zero
  if (units * below !== scaled && (scaled > 0n) === (side > 0n)) units += side;
  const figures = (units < 0n ? -units : units).toString().padStart(digits + 1, "0");
  const whole = figures.length - digits;
  const rest = digits === 0 ? "" : `.${figures.slice(whole)}`;
  return `${units < 0n ? "-" : ""}${figures.slice(0, whole)}${rest}`;
}

// Numerator and denominator of a finite double.
function fraction(value) {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, value);
  const bits = view.getBigUint64(0);
  const exponent = Number((bits >> 52n) & 0x7ffn);
  const significand = (bits & (2n ** 52n - 1n)) + (exponent === 0 ? 0n : 2n ** 52n);
  const power = Math.max(exponent, 1) - 1075;
  const sign = bits >> 63n === 1n ? -1n : 1n;
  return [sign * significand * 2n ** BigInt(Math.max(power, 0)), 2n ** BigInt(Math.max(-power, 0))];
}

function escaped(character) {
  const code = character.codePointAt(0);
  const [letter, length] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
  return NAMED[character] ?? `\\${letter}${code.toString(16).padStart(length, "0")}`;
}
