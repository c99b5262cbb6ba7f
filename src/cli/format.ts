/** 1536 -> "1.5 KB". Units are powers of 1024. */
export function formatBytes(size: number): string {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let value = size;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${units[unit]}`;
}

/** 134515008 -> "134.5 M". Units are powers of 1000. */
export function formatCount(count: number): string {
  if (count < 1e4) return String(count);
  const [divisor, unit] = count < 1e6 ? [1e3, "k"] : count < 1e9 ? [1e6, "M"] : [1e9, "B"];
  const value = count / divisor;
  return `${value.toFixed(value < 10 ? 2 : 1)} ${unit}`;
}

/** A number with about three digits. */
export function formatNumber(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** A text for a terminal: its lines and tabs stay, other control characters are shown instead of obeyed. */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}]/gu, (character) => {
    const code = character.charCodeAt(0);
    if (character === "\n" || character === "\t") return character;
    // the pictures of U+0000 ... U+001F; those from U+0080 on have none
    return code < 0x20 ? String.fromCharCode(0x2400 + code) : code === 0x7f ? "␡" : "\ufffd";
  });
}

/** A token's text in one line: line ends, tabs and other control characters as visible signs. */
export function visible(token: string): string {
  return printable(token).replace(/\n/g, "⏎").replace(/\t/g, "⇥");
}

/** Cut to a width, with an ellipsis where something was lost. */
export function clip(text: string, width: number): string {
  const letters = [...text];
  return letters.length <= width ? text : `${letters.slice(0, Math.max(0, width - 1)).join("")}…`;
}

/** A table of texts with aligned columns; columns named in `right` are flushed right. */
export function table(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  right: readonly number[] = [],
): string {
  const all = [head, ...rows];
  const widths = head.map((_, column) => Math.max(...all.map((row) => [...(row[column] ?? "")].length)));
  const line = (row: readonly string[]): string =>
    row
      .map((cell, column) => {
        const fill = " ".repeat(Math.max(0, widths[column] - [...cell].length));
        return right.includes(column) ? fill + cell : cell + fill;
      })
      .join("  ")
      .trimEnd();
  return `${[line(head), widths.map((width) => "-".repeat(width)).join("  "), ...rows.map(line)].join("\n")}\n`;
}

/** Pretty on a terminal, one line in a pipe. */
export function json(value: unknown, pretty: boolean): string {
  return `${JSON.stringify(value, undefined, pretty ? 2 : undefined)}\n`;
}
