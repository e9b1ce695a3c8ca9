/** The form of what a conversation asks of the model besides its messages: system message, sampling, thoughts, tools. */

/** Fields that are numbers of the request: name, label, least, most, step, value at first. An empty one is left out of the request. */
const NUMBERS = [
  ["temperature", "Temperature", 0, 5, "any", "0.7"],
  ["top_p", "Top-p", 0, 1, "any", "0.95"],
  ["top_k", "Top-k", 0, null, 1, "40"],
  ["min_p", "Min-p", 0, 1, "any", "0.05"],
  ["repeat_penalty", "Repeat penalty", 0.01, 1000, "any", "1"],
  ["max_tokens", "Most tokens", 1, null, 1, ""],
  ["seed", "Seed", null, null, 1, ""],
  ["thinking_budget_tokens", "Most thought tokens", 0, null, 1, ""],
];
const FURTHER = [
  ["presence_penalty", "Presence penalty", -10, 10, "any", ""],
  ["frequency_penalty", "Frequency penalty", -10, 10, "any", ""],
  ["typical_p", "Typical-p", 0, 1, "any", ""],
  ["top_n_sigma", "Top-n-sigma", -1, null, "any", ""],
  ["xtc_probability", "XTC probability", 0, 1, "any", ""],
  ["xtc_threshold", "XTC threshold", 0, 1, "any", ""],
  ["dry_multiplier", "DRY multiplier", 0, null, "any", ""],
  ["dry_base", "DRY base", 1, null, "any", ""],
  ["dry_allowed_length", "DRY allowed length", 0, null, 1, ""],
  ["dynatemp_range", "Dynamic temperature", 0, null, "any", ""],
];
const PLACEHOLDERS = { max_tokens: "no limit", seed: "random", thinking_budget_tokens: "the server's" };
const THINKING = [["", "as the model has it"], ["true", "on"], ["false", "off"]];

/** What a new conversation has where there is none before it. */
export const DEFAULTS = Object.fromEntries(NUMBERS.map(([name, , , , , value]) => [name, value]).filter(([, value]) => value));

function labelled(text, field, className) {
  const label = document.createElement("label");
  if (className) label.className = className;
  label.append(`${text} `, field);
  return label;
}

function numberField([name, label, min, max, step]) {
  const input = Object.assign(document.createElement("input"), { id: name, name, type: "number", step, placeholder: PLACEHOLDERS[name] ?? "" });
  if (min !== null) input.min = min;
  if (max !== null) input.max = max;
  return labelled(label, input);
}

function textField(name, label, rows) {
  return labelled(label, Object.assign(document.createElement("textarea"), { id: name, name, rows }), "wide");
}

export class Settings {
  /** Fills `container`, and calls `changed` with every change. */
  constructor(container, changed) {
    const thinking = Object.assign(document.createElement("select"), { id: "enable_thinking", name: "enable_thinking" });
    thinking.append(...THINKING.map(([value, text]) => new Option(text, value)));
    const further = document.createElement("details");
    further.className = "wide";
    const summary = document.createElement("summary");
    summary.textContent = "Further samplers and tools";
    const grid = document.createElement("div");
    grid.className = "grid";
    const tools = textField("tools", "Tools, a list of functions as JSON", 3);
    grid.append(...FURTHER.map(numberField), tools);
    further.append(summary, grid);
    const first = document.createElement("div");
    first.className = "grid";
    first.append(textField("system", "System message", 2), ...NUMBERS.map(numberField), labelled("Thinking", thinking), further);
    container.append(first);
    this.container = container;
    this.fields = [...container.querySelectorAll("input, textarea, select")];
    container.addEventListener("input", changed);
  }

  /** What stands in the form. */
  get values() {
    return Object.fromEntries(this.fields.map((field) => [field.name, field.value]).filter(([, value]) => value !== ""));
  }

  set values(values) {
    for (const field of this.fields) field.value = values[field.name] ?? "";
  }

  /** The fields of a request, or null where one is not filled in properly, which is shown then. */
  request() {
    this.fields.forEach((field) => field.setCustomValidity(""));
    const body = {};
    for (const field of this.fields) {
      const value = field.value.trim();
      if (field.name === "tools" && value) {
        try {
          body.tools = JSON.parse(value);
        } catch (error) {
          field.setCustomValidity(`expected a list of functions as JSON: ${error.message}`);
        }
      }
      if (!field.checkValidity()) {
        for (let fold = field.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
        field.reportValidity();
        return null;
      }
      if (field.type === "number" && value) body[field.name] = Number(value);
      if (field.name === "enable_thinking" && value) body.enable_thinking = value === "true";
    }
    return body;
  }

  get system() {
    return this.values.system?.trim() ?? "";
  }
}
