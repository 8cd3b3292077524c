// Shows the view that the URL names.

import { el } from "./dom.js";
import { showDevice } from "./device.js";
import { showFleet } from "./fleet.js";
import { refreshAges, zone } from "./format.js";
import { connect } from "./live.js";
import { read } from "./state.js";
import { showStorage } from "./storage.js";
import { watchStatus } from "./status.js";

const main = document.getElementById("main");
let shown = null;

function route() {
  const { page, id } = read();
  const key = `${page}/${id}`;
  if (shown?.key === key) {
    shown.update();
    return;
  }
  shown?.leave();
  const moved = shown !== null;
  main.replaceChildren();
  const view = { fleet: showFleet, vehicle: showDevice, meter: showDevice, storage: showStorage }[page] ?? showNothing;
  shown = { key, ...view(main, page, id) };
  if (moved) {
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
}

function showNothing() {
  document.title = "Wattline";
  main.append(el("p", { class: "empty" }, "There is no such page. ", el("a", { href: "#/fleet" }, "The fleet")));
  return { update() {}, leave() {} };
}

document.getElementById("zone").textContent = `Times in ${zone}`;
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash names the view
  main.focus();
});
addEventListener("hashchange", route);
setInterval(refreshAges, 1_000);
watchStatus();
connect();
route();
