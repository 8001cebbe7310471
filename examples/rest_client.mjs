// Steps an environment of a host by REST, from Node (18 or later) or a browser; no dependencies.
//
//   agentgpt serve CartPole-v1
//   node examples/rest_client.mjs http://127.0.0.1:8000 200
//
// In a web page: import { RemoteEnv } from "./rest_client.mjs".

const ATTEMPTS = 5;

/** What the host answered instead of a result. */
export class HostError extends Error {
  constructor(status, error) {
    super(typeof error === "string" ? error : `${error.type}: ${error.message}`);
    this.status = status;
    this.type = error.type;
    this.nextSequence = error.next_sequence;
  }
}

/** An environment on a host, or a vector of them where it is made with num_envs. */
export class RemoteEnv {
  #url;
  #headers;
  #sequence = 1;

  /** Makes an environment; `request` may hold source, num_envs, autoreset_mode, render_mode and kwargs. */
  static async make(url, request = {}, token = undefined) {
    const env = new RemoteEnv(url, token);
    const made = await env.#ask("POST", "/v1/sessions", request);
    env.#url += `/v1/sessions/${made.session_id}`;
    env.#headers["x-session-secret"] = made.secret;
    env.spaces = made.spaces;
    env.metadata = made.metadata;
    env.numEnvs = made.num_envs;
    return env;
  }

  constructor(url, token) {
    this.#url = url.replace(/^ws/, "http").replace(/\/$/, "");
    this.#headers = token === undefined ? {} : { authorization: `Bearer ${token}` };
  }

  /** Begins an episode; returns observation and info. */
  reset({ seed = null, options = null } = {}) {
    return this.#numbered("/reset", { seed, options });
  }

  /** Takes a step; returns observation, reward, terminated, truncated and info. */
  step(action) {
    return this.#numbered("/step", { action });
  }

  /** Returns the frames; `img.src = "data:image/png;base64," + frames[0].png` shows the first. */
  async render() {
    return (await this.#ask("GET", "/render")).frames;
  }

  /** Ends the session; without it, the host ends it when it has been idle for a while. */
  close() {
    return this.#ask("DELETE", "");
  }

  /** Asks again after a lost connection: the sequence number keeps the host from stepping twice. */
  async #numbered(path, body) {
    for (let attempt = 1; ; attempt++) {
      try {
        const reply = await this.#ask("POST", path, { ...body, sequence: this.#sequence });
        this.#sequence = reply.next_sequence;
        return reply;
      } catch (error) {
        if (error instanceof HostError) {
          this.#sequence = error.nextSequence ?? this.#sequence;
          throw error;
        }
        if (attempt === ATTEMPTS) throw error;
        await new Promise((wake) => setTimeout(wake, 100 * 2 ** attempt));
      }
    }
  }

  async #ask(method, path, body = undefined) {
    const headers = { ...this.#headers, ...(body && { "content-type": "application/json" }) };
    const response = await fetch(this.#url + path, { method, headers, body: body && JSON.stringify(body) });
    const text = await response.text();
    const reply = text ? JSON.parse(text) : {};
    if (response.ok) return reply;
    throw new HostError(response.status, reply.error);
  }
}

/** Balances CartPole by pushing the cart to where the pole leans; prints one line of JSON. */
async function main([url = "http://127.0.0.1:8000", steps = "200"]) {
  const env = await RemoteEnv.make(url, {}, process.env.AGENTGPT_TOKEN);
  const rewards = [];
  let { observation } = await env.reset({ seed: 0 });
  let ended = false;
  while (!ended && rewards.length < Number(steps)) {
    const [, , angle, angularVelocity] = observation.map(Number); // Number reads "NaN" and "Infinity" too
    const step = await env.step(angle + 0.5 * angularVelocity > 0 ? 1 : 0);
    observation = step.observation;
    rewards.push(step.reward);
    ended = step.terminated || step.truncated;
  }
  await env.close();
  console.log(JSON.stringify({ steps: rewards.length, return: rewards.reduce((a, b) => a + b, 0), observation }));
}

const isScript = typeof process !== "undefined" && import.meta.url.endsWith(process.argv[1]?.split(/[\\/]/).pop());
if (isScript) await main(process.argv.slice(2));
