// SPDX-License-Identifier: Apache-2.0
// Uses a one-time link, after a click: programs that look at mails open links, too.

// Paths are relative: a reverse proxy may serve all of it below a path of its own.
const pages = {
  "activate": {
    title: "Activate your account",
    button: "Activate",
    path: "../v1/auth/activate",
    body: (token) => ({ token, cookie: true }),
    done: (answer) => `Your account is active, and you are signed in as ${answer.email}.`,
  },
  "sign-in": {
    title: "Sign in",
    button: "Sign in",
    path: "../v1/auth/sign-in-link",
    body: (token) => ({ token, cookie: true }),
    done: (answer) => `You are signed in as ${answer.email}.`,
  },
  "reset-password": {
    title: "Set another password",
    button: "Set the password",
    path: "../v1/auth/password-reset/confirm",
    asksPassword: true,
    body: (token, password) => ({ token, new_password: password }),
    done: () => "The password is set, and all sessions are ended. Sign in with it.",
  },
  "invitation": {
    title: "Join the team",
    button: "Join",
    path: "../v1/invitations/accept",
    body: (token) => ({ token }),
    done: () => "You are in the team now.",
    refused: { 401: "Sign in first, with the address that the invitation was sent to, and open the link again." },
  },
};

const part = (id) => document.getElementById(id);
const page = pages[location.pathname.split("/").pop()];
const token = new URLSearchParams(location.hash.slice(1)).get("token");
// The token is not kept in the history of the browser.
history.replaceState(null, "", location.pathname);

function csrfToken() {
  const pairs = document.cookie.split("; ");
  // The first name is that over HTTPS.
  for (const name of ["__Host-wrenn_csrf=", "wrenn_csrf="]) {
    const pair = pairs.find((each) => each.startsWith(name));
    if (pair !== undefined) return { "X-CSRF-Token": pair.slice(name.length) };
  }
  return {};
}

async function send(event) {
  event.preventDefault();
  part("button").disabled = true;
  try {
    const response = await fetch(page.path, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...csrfToken() },
      body: JSON.stringify(page.body(token, part("password").value)),
    });
    const answer = response.status === 204 ? {} : await response.json();
    if (response.ok) {
      part("form").hidden = true;
      part("text").textContent = page.done(answer);
      return;
    }
    part("text").textContent = page.refused?.[response.status] ?? answer.error.message;
  } catch {
    part("text").textContent = "The server does not answer; try again in a moment.";
  }
  part("button").disabled = false;
}

part("title").textContent = page.title;
if (token === null) {
  part("text").textContent = "The link is not complete: copy all of it from the mail or the terminal.";
} else {
  part("text").textContent = "";
  part("field").hidden = page.asksPassword !== true;
  part("password").required = page.asksPassword === true;
  part("button").textContent = page.button;
  part("form").hidden = false;
  part("form").addEventListener("submit", send);
}
