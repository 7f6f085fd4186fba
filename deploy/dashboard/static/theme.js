// Sets the theme before anything is painted; without a choice the system's own one is used.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("nufed-theme"); } catch { /* storage may be switched off */ }
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
})();
