// Runs before the first paint, so that a chosen theme does not flash. Not chosen: as the system is set.
const chosen = localStorage.getItem("theme");
if (chosen) document.documentElement.dataset.theme = chosen;
