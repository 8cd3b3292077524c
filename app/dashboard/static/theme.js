// This runs before the first paint, so that a chosen theme does not flash.
"use strict";
{
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem("wattline-theme");
    } catch {
      return null; // storage is switched off
    }
  };
  const apply = () => {
    document.documentElement.dataset.theme = stored() ?? (dark.matches ? "dark" : "light");
    document.dispatchEvent(new Event("theme"));
  };
  apply();
  dark.addEventListener("change", apply);
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => {
      const other = document.documentElement.dataset.theme === "dark" ? "Light" : "Dark";
      button.textContent = `${other} theme`;
    };
    label();
    document.addEventListener("theme", label);
    button.addEventListener("click", () => {
      const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      try {
        // A choice that equals the system's is dropped, so that the page follows the system again.
        if (other === (dark.matches ? "dark" : "light")) localStorage.removeItem("wattline-theme");
        else localStorage.setItem("wattline-theme", other);
      } catch {
        // Without storage, the choice lasts as long as the page.
      }
      document.documentElement.dataset.theme = other;
      document.dispatchEvent(new Event("theme"));
    });
  });
}
