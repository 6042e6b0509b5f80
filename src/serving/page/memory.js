// What a reload should not cost, kept until the tab is closed; without storage it lasts as long as the page.

export function remember(name, value) {
  try { sessionStorage.setItem(name, JSON.stringify(value)); } catch { /* full, or forbidden by the browser's settings */ }
}

export function recall(name) {
  try { return JSON.parse(sessionStorage.getItem(name)); } catch { return null; }
}
