// One token more for each row of a batch: all layers of the model in one call, by one team of threads.
//
// The phases of a layer follow each other at barriers. Rows are independent of each other in all of them, and so are a
// row's bits of the number of rows and threads. Layouts of the structures are those of `model_impl.cpu.decode`.

#include <omp.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "attention.h"
#include "product.h"
#include "rows.h"
#include "single.h"
#include "weights.h"

namespace {

constexpr int64_t THREADED = 4'000'000;  // products of two numbers in a layer that are worth a team at ten barriers

struct Layer {
  const uint8_t *qkv, *attention_out, *gate_up, *down;  // weights.h or quantized.h
  const uint16_t *query_norm, *key_norm, *turns, *attention_norm, *mlp_norm;
  void* pages;
  int64_t page_stride, view;  // numbers between pages; which View of the requests it has
};

struct Model {
  const Layer* layers;
  const uint16_t* embedding;           // (vocabulary, hidden), or null where
  const uint8_t* quantized_embedding;  // it is one of quantized.h,
  const uint8_t* packed_embedding;     // or of weights.h
  const uint16_t* norm;
  int64_t count, hidden, intermediate, queries, keys, size, page_tokens, page_number;  // the last: bytes of a page's number
  float scale, eps;
};

// What layers with the same tables and the same window see of each request.
struct View {
  const int32_t* tables;  // (rows, table_stride): pages of a request, those before the window being anything
  int64_t table_stride;
  const int64_t* slots;     // (rows): where the new token goes, or negative
  const int32_t* lengths;   // (rows): tokens with the new one
  int64_t window;           // 0: everything
};

// A row's tokens [first, last), within a chunk.
struct Unit {
  int64_t row, first, last;
};

// The units of a view and how they are dealt out: to thread t those from `starts[t]` on.
struct Work {
  std::vector<Unit> units;
  std::vector<int64_t> of_row, starts;
  int64_t tokens;

  void plan(const View& view, int64_t rows) {
    units.clear();
    of_row.clear();
    tokens = 0;
    for (int64_t row = 0; row < rows; row++) {
      of_row.push_back(units.size());
      const int64_t last = view.lengths[row];
      int64_t first = view.window ? std::max<int64_t>(0, last - view.window) : 0;
      tokens += last - first;
      for (int64_t end; first < last; first = end) {
        end = std::min(last, (first / CHUNK_TOKENS + 1) * CHUNK_TOKENS);
        units.push_back({row, first, end});
      }
    }
    of_row.push_back(units.size());
  }

  void deal(int64_t threads) {
    const int64_t whole = tokens + GROUP * units.size();  // a unit costs something by itself
    starts.assign(threads + 1, units.size());
    int64_t before = 0, thread = 0;
    for (size_t unit = 0; unit < units.size(); unit++) {
      while (thread < threads && before >= whole * thread / threads) starts[thread++] = unit;
      before += units[unit].last - units[unit].first + GROUP;
    }
  }
};

struct Batch {
  int64_t rows;
  const int32_t* ids;
  const int64_t* positions;
  const View* views;
  const Work* works;
  uint16_t* out;
};

// `Number`: of the pages.
template <class Number>
class Step {
 public:
  // `units`: the most of a view. What is computed lies in `buffer`.
  Step(const Model& model, const Batch& batch, int64_t units, Buffer& buffer)
      : model(model), rows(batch.rows), ids(batch.ids), positions(batch.positions), views(batch.views),
        works(batch.works), out(batch.out) {
    const int64_t wide = model.queries * model.size, tiles = (rows + Product::ROWS - 1) / Product::ROWS;
    // Whole units of UNIT_K are room for rounded rows too.
    const int64_t widest =
        (std::max(std::max(model.hidden, wide), model.intermediate) + UNIT_K - 1) / UNIT_K * UNIT_K;
    const int64_t sizes[] = {
        rows * model.hidden,        rows * width_of_qkv(), rows * wide,
        rows * model.hidden,        2 * rows * model.intermediate,
        rows * model.intermediate,  (tiles + 1) * Product::ROWS * widest,
        2 * units * Partial::floats(heads()),
    };
    uint16_t** parts[] = {&hidden_, &qkv_, &attended_, &product_, &gate_up_, &gated_, &arranged_, &partials_};
    int64_t total = 0;
    for (int64_t size : sizes) total += aligned(size);
    uint16_t* at = (uint16_t*)buffer.need(total * sizeof(uint16_t));
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); at += aligned(sizes[i++])) *parts[i] = at;
  }

  // By each thread of a team.
  void run(int64_t thread, int64_t threads) const {
    const int64_t hidden = model.hidden, middle = model.intermediate;
    auto multiply = [&](const uint16_t* x, int64_t k, const uint8_t* packed, int64_t columns, uint16_t* y) {
      product(x, k, packed, columns, y).multiply(thread, threads);
#pragma omp barrier
    };
    // Rows of the x of a product with these weights, made and arranged tile by tile.
    auto make = [&](const uint16_t* x, int64_t k, const uint8_t* packed, auto&& row_of) {
      const Product job = product(x, k, packed, 0, nullptr);
      for (int64_t tile = job.tiles() * thread / threads; tile < job.tiles() * (thread + 1) / threads; tile++) {
        for (int64_t row = tile * Product::ROWS; row < job.tile_end(tile); row++) row_of(row);
        job.arrange(tile);
      }
#pragma omp barrier
    };
    const Layer* const end = model.layers + model.count;
    make(hidden_, hidden, model.layers->qkv, [&](int64_t row) { embed(ids[row], hidden_ + row * hidden); });
    for (const Layer* layer = model.layers; layer < end; layer++) {
      multiply(hidden_, hidden, layer->qkv, width_of_qkv(), qkv_);
      for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; row++) turn(*layer, row);
#pragma omp barrier
      const Work& work = works[layer->view];
      look(*layer, work.starts[thread], work.starts[thread + 1]);
#pragma omp barrier
      make(attended_, width_of_queries(), layer->attention_out, [&](int64_t row) {
        merge(partial(work.of_row[row]), work.of_row[row + 1] - work.of_row[row], heads(),
              attended_ + row * width_of_queries());
      });
      multiply(attended_, width_of_queries(), layer->attention_out, hidden, product_);
      make(hidden_, hidden, layer->gate_up, [&](int64_t row) { add(row, layer->attention_norm); });
      multiply(hidden_, hidden, layer->gate_up, 2 * middle, gate_up_);
      make(gated_, middle, layer->down, [&](int64_t row) {
        silu_mul_row(gate_up_ + row * 2 * middle, middle, gated_ + row * middle);
      });
      multiply(gated_, middle, layer->down, hidden, product_);
      const uint8_t* next = layer + 1 < end ? layer[1].qkv : nullptr;
      make(hidden_, hidden, next, [&](int64_t row) { add(row, layer->mlp_norm); });
    }
    for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; row++)
      add_norm_row(nullptr, hidden_ + row * hidden, model.norm, model.eps, hidden, out + row * hidden);
  }

 private:
  const Model& model;
  const int64_t rows;
  const int32_t* const ids;
  const int64_t* const positions;
  const View* const views;
  const Work* const works;
  uint16_t* const out;
  uint16_t *hidden_, *qkv_, *attended_, *product_, *gate_up_, *gated_, *arranged_, *partials_;

  static int64_t aligned(int64_t values) { return (values + 31) / 32 * 32; }
  Heads heads() const { return {model.queries, model.keys, model.size, model.scale}; }
  int64_t width_of_queries() const { return model.queries * model.size; }
  int64_t width_of_qkv() const { return (model.queries + 2 * model.keys) * model.size; }
  float* partial(int64_t unit) const { return (float*)partials_ + unit * Partial::floats(heads()); }
  Pages<Number> pages(const Layer& layer) const {
    return {(Number*)layer.pages, layer.page_stride, model.page_tokens};
  }

  Product product(const uint16_t* x, int64_t k, const uint8_t* packed, int64_t columns, uint16_t* y) const {
    return {x, rows, k / 2, k, packed, columns, nullptr, y, (Pair*)arranged_};
  }

  void embed(int64_t id, uint16_t* to) const {
    if (model.quantized_embedding)
      restore_column(*QuantizedWeights::of(model.quantized_embedding), id, to);
    else if (model.packed_embedding)
      Weights(model.packed_embedding).column(id, to);
    else
      memcpy(to, model.embedding + id * model.hidden, model.hidden * sizeof(uint16_t));
  }

  // A row's queries and keys made ready.
  void turn(const Layer& layer, int64_t row) const {
    uint16_t* qkv = qkv_ + row * width_of_qkv();
    const uint16_t* turn = layer.turns ? layer.turns + positions[row] * model.size : nullptr;
    for (int64_t head = 0; head < model.queries + model.keys; head++)
      norm_rope_head(qkv + head * model.size, model.size, head < model.queries ? layer.query_norm : layer.key_norm,
                     model.eps, turn);
  }

  // The units [first, last) of a layer. New keys and values are kept by who has the chunk that they are in.
  void look(const Layer& layer, int64_t first, int64_t last) const {
    const View& view = views[layer.view];
    const std::vector<Unit>& units = works[layer.view].units;
    auto chunk_of = [&](int64_t number) {
      const Unit& unit = units[number];
      return Chunk(view.tables + unit.row * view.table_stride, model.page_tokens, unit.first, unit.last);
    };
    Chunk chunks[2];  // this one and the next
    if (first < last) chunks[first % 2] = chunk_of(first);
    for (int64_t number = first; number < last; number++) {
      const bool more = number + 1 < last;
      if (more) chunks[(number + 1) % 2] = chunk_of(number + 1);
      const Chunk *chunk = chunks + number % 2, *next = more ? chunks + (number + 1) % 2 : nullptr;
      const Unit& unit = units[number];
      const uint16_t* query = qkv_ + unit.row * width_of_qkv();
      const uint16_t *keys = query + width_of_queries(), *values = keys + model.keys * model.size;
      const int64_t slot = unit.last == view.lengths[unit.row] ? view.slots[unit.row] : -1;
      for (int64_t head = 0; head < model.keys; head++) {
        if (slot >= 0)
          keep(heads(), pages(layer), slot, head, keys + head * model.size, values + head * model.size);
        const Ahead ahead = head + 1 < model.keys ? Ahead{chunk, head + 1} : Ahead{next, 0};
        attend(query, *chunk, heads(), pages(layer), head, Partial(partial(number), heads()), ahead);
      }
    }
  }

  void add(int64_t row, const uint16_t* norm) const {
    uint16_t* hidden = hidden_ + row * model.hidden;
    add_norm_row(hidden, product_ + row * model.hidden, norm, model.eps, model.hidden, hidden);
  }
};

thread_local Buffer memory;
thread_local std::vector<Work> plans;

// Whether a step has enough to do in an average layer; tokens of attention count four times, as they need more for each.
bool worth_a_team(const Model& model, int64_t rows, const Work* works) {
  const int64_t wide = model.queries * model.size;
  const int64_t weights =
      model.hidden * (2 * wide + 2 * model.keys * model.size) + 3 * model.hidden * model.intermediate;
  int64_t tokens = 0;
  for (int64_t l = 0; l < model.count; l++) tokens += works[model.layers[l].view].tokens;
  return std::max<int64_t>(rows, Product::ROWS) * weights + 8 * tokens / model.count * wide >= THREADED;
}

template <class Number>
void attend_over(const Layout& layout, const Token& token) {
  static thread_local Buffer buffer;
  const Heads heads{layout.queries, layout.keys, layout.size, layout.scale};
  const Pages<Number> pages{(Number*)layout.pages, layout.page_stride, layout.page_tokens};
  const int32_t length = (int32_t)token.length;
  Work work;
  work.plan({nullptr, 0, nullptr, &length, layout.window}, 1);
  const int64_t floats = Partial::floats(heads), count = (int64_t)work.units.size();
  float* partials = (float*)buffer.need(count * floats * sizeof(float));
  for (int64_t number = 0; number < count; number++) {
    const Chunk chunk(token.table, layout.page_tokens, work.units[number].first, work.units[number].last);
    for (int64_t head = 0; head < heads.keys; head++)
      attend(token.query, chunk, heads, pages, head, Partial(partials + number * floats, heads), {nullptr, 0});
  }
  merge(partials, count, heads, token.out);
}

// The step of a thread's team.
template <class Number>
void run(const Model& model, const Batch& batch, int64_t units, std::vector<Work>& works, int64_t views, int threads) {
  const Step<Number> step(model, batch, units, memory);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp single
    for (int64_t v = 0; v < views; v++) works[v].deal(omp_get_num_threads());
    step.run(omp_get_thread_num(), omp_get_num_threads());
  }
}

}  // namespace

void attend_token(const Layout& layout, const Token& token) {
  (layout.page_number == 1 ? attend_over<uint8_t> : attend_over<uint16_t>)(layout, token);
}

extern "C" {

// ids and positions (rows) to hidden states after the final norm, out (rows, hidden).
void decode_step(const Model* model, const View* views, int64_t count_of_views, int64_t rows, const int32_t* ids,
                 const int64_t* positions, uint16_t* out) {
  if (plans.size() < (size_t)count_of_views) plans.resize(count_of_views);
  size_t units = 0;
  for (int64_t v = 0; v < count_of_views; v++) {
    plans[v].plan(views[v], rows);
    units = std::max(units, plans[v].units.size());
  }
  const int threads = worth_a_team(*model, rows, plans.data()) ? omp_get_max_threads() : 1;
  auto step = model->page_number == 1 ? run<uint8_t> : run<uint16_t>;
  step(*model, {rows, ids, positions, views, plans.data(), out}, units, plans, count_of_views, threads);
}

}  // extern "C"
