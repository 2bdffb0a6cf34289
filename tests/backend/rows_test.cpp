// SPDX-License-Identifier: Apache-2.0
// What every backend does with rows: embedding, gathering, pooling, cross-entropy, dropout by address; and its arena.
#include "conformance.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_DEFINE("embedding adds the rows of its tables", B, embedding) {
  using T = typename B::Scalar;
  for (const Index width : {1, 15, 33}) {
    const Values words = random_values(7, width, 1), places = random_values(5, width, 2),
                 types = random_values(2, width, 3);
    const std::vector<std::int32_t> word_ids = {6, 0, 0, 3}, place_ids = {0, 1, 2, 4}, type_ids = {1, 0, 1, 0};
    const Guarded<T> w(words), p(places), t(types);
    const std::vector<MatrixView<const T>> tables = {w.in(), p.in(), t.in()};
    const std::vector<const std::int32_t*> ids = {word_ids.data(), place_ids.data(), type_ids.data()};
    for (std::size_t used = 1; used <= 3; ++used) {
      Values expected(4, width);
      for (std::size_t i = 0; i < 4; ++i)
        for (Index j = 0; j < width; ++j) {
          double& sum = expected(static_cast<Index>(i), j);
          sum = words(word_ids[i], j);
          if (used > 1) sum += places(place_ids[i], j);
          if (used > 2) sum += types(type_ids[i], j);
        }
      Guarded<T> y(4, width);
      B::embed(std::span(tables).first(used), std::span(ids).first(used), y.view());
      check_close(y, expected, tolerance<B>, "embedding");
    }
  }
}
TEST_CASE_TEMPLATE_APPLY(embedding, Backends);

TEST_CASE_TEMPLATE_DEFINE("rows are gathered, scattered, copied, added and cleared", B, rows) {
  using T = typename B::Scalar;
  const Values x = random_values(6, 17, 1), part = random_values(3, 17, 2);
  const std::vector<std::int32_t> where = {5, 0, 5};
  const Guarded<T> x_in(x), part_in(part);
  Guarded<T> gathered(3, 17), scattered(x), copied(6, 17), added(x), cleared(6, 17);
  B::gather_rows(x_in.in(), where, gathered.view());
  B::scatter_rows_add(part_in.in(), where, scattered.view());
  B::copy(x_in.in(), copied.view());
  B::add(x_in.in(), added.view());
  B::fill_zero(cleared.view());
  Values taken(3, 17), put = x;
  for (std::size_t i = 0; i < 3; ++i)
    for (Index j = 0; j < 17; ++j) {
      taken(static_cast<Index>(i), j) = x(where[i], j);
      put(where[i], j) += part(static_cast<Index>(i), j);
    }
  check_close(gathered, taken, 0, "gathered");
  check_close(scattered, put, tolerance<B>, "scattered");
  check_close(copied, x, 0, "copied");
  check_close(added, sum_of(x, x), 0, "added");
  check_close(cleared, Values(6, 17), 0, "cleared");
}
TEST_CASE_TEMPLATE_APPLY(rows, Backends);

TEST_CASE_TEMPLATE_DEFINE("mean pooling, forward and backward", B, pooling) {
  using T = typename B::Scalar;
  const std::vector<std::int32_t> cu = {0, 1, 6, 8};
  const Values x = random_values(8, 31, 1), dy = random_values(3, 31, 2);
  Values mean(3, 31), back(8, 31);
  for (Index s = 0; s < 3; ++s) {
    const auto begin = cu[static_cast<std::size_t>(s)], end = cu[static_cast<std::size_t>(s) + 1];
    for (Index i = begin; i < end; ++i)
      for (Index j = 0; j < 31; ++j) {
        mean(s, j) += x(i, j) / (end - begin);
        back(i, j) = dy(s, j) / (end - begin);
      }
  }
  const Guarded<T> x_in(x), dy_in(dy);
  Guarded<T> y(3, 31), dx(8, 31);
  B::mean_rows(x_in.in(), cu, y.view());
  B::mean_rows_backward(dy_in.in(), cu, dx.view());
  check_close(y, mean, tolerance<B>, "mean");
  check_close(dx, back, tolerance<B>, "gradient");
}
TEST_CASE_TEMPLATE_APPLY(pooling, Backends);

TEST_CASE_TEMPLATE_DEFINE("cross-entropy, its gradient, and rows without a label", B, loss) {
  using T = typename B::Scalar;
  for (const Index classes : {1, 2, 3, 16, 33, 257})
    for (const double size : {1.0, 300.0}) {
      CAPTURE(classes);
      const Values logits = random_values(5, classes, 1, size);
      std::vector<std::int32_t> labels(5);
      for (std::size_t i = 0; i < 5; ++i)
        labels[i] = static_cast<std::int32_t>((7 * i + 2) % static_cast<std::size_t>(classes));
      labels[3] = -1;
      const double weight = 0.375;
      double expected = 0;
      Values gradient(5, classes);
      for (Index i = 0; i < 5; ++i) {
        const std::int32_t label = labels[static_cast<std::size_t>(i)];
        if (label < 0) continue;
        double top = logits(i, 0);
        for (Index j = 1; j < classes; ++j) top = std::max(top, logits(i, j));
        double sum = 0;
        for (Index j = 0; j < classes; ++j) sum += std::exp(logits(i, j) - top);
        expected += std::log(sum) + top - logits(i, label);
        for (Index j = 0; j < classes; ++j)
          gradient(i, j) = weight * (std::exp(logits(i, j) - top) / sum - (j == label ? 1.0 : 0.0));
      }
      Guarded<T> in_place(logits);
      const Guarded<T> untouched(logits);
      const double bound = sizeof(T) == 8 ? 1e-12 : 1e-5;
      CHECK(std::abs(B::cross_entropy_loss(untouched.in(), labels.data()) - expected) <= bound * (1 + expected));
      CHECK(untouched.values().data == Guarded<T>(logits).values().data);
      CHECK(std::abs(B::cross_entropy(in_place.view(), labels.data(), static_cast<T>(weight)) - expected) <=
            bound * (1 + expected));
      check_close(in_place, gradient, classes == 1 ? 1e-30 : 2 * tolerance<B>, "gradient");
    }
}
TEST_CASE_TEMPLATE_APPLY(loss, Backends);

TEST_CASE_TEMPLATE_DEFINE("dropout's mask is the documented one, element by element", B, dropout_mask) {
  using T = typename B::Scalar;
  const std::vector<std::int32_t> numbers = {0, 3, 2, 100000, 2};
  for (const Index width : {1, 2, 3, 4, 5, 15, 61, 63, 64, 65, 127, 128, 130, 300})
    for (const double probability : {0.1, 0.5, 0.9}) {
      CAPTURE(width);
      const Dropout dropout(derive_key(9, Purpose::user, width), probability);
      const Values x = random_values(5, width, 1);
      Values expected(5, width);
      for (Index i = 1; i < 5; ++i)
        for (Index j = 0; j < width; ++j)
          expected(i, j) = mask_of(dropout, numbers[static_cast<std::size_t>(i)], j) * x(i, j);
      const Guarded<T> x_in(x);
      Guarded<T> y(5, width), in_place(x);
      B::dropout(dropout, x_in.in(), y.view(), numbers.data(), 1, 5);
      B::dropout(dropout, in_place.in(), in_place.view(), numbers.data(), 1, 5);
      CHECK(std::isnan(y.values()(0, 0)));  // row 0 is not in the run
      Values got = y.values(), again = in_place.values();
      bool untouched = true;
      for (Index j = 0; j < width; ++j) {
        untouched = untouched && again(0, j) == x(0, j);
        got(0, j) = again(0, j) = 0;
      }
      CHECK(untouched);
      CHECK(error_of(got, expected) <= tolerance<B>);
      CHECK(got.data == again.data);
      CHECK(y.intact());
    }
}
TEST_CASE_TEMPLATE_APPLY(dropout_mask, Backends);

TEST_CASE_TEMPLATE_DEFINE("dropout keeps the share it should, and scales what it keeps", B, dropout_rate) {
  using T = typename B::Scalar;
  constexpr Index count = 400, width = 250;
  std::vector<std::int32_t> numbers(count);
  for (Index i = 0; i < count; ++i) numbers[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
  Values ones(count, width);
  for (double& one : ones.data) one = 1;
  for (const double probability : {0.05, 0.1, 0.5, 0.8}) {
    CAPTURE(probability);
    Guarded<T> x(ones);
    B::dropout(Dropout(derive_key(10, Purpose::user), probability), x.in(), x.view(), numbers.data(), 0, count);
    double kept = 0, pairs = 0, wrong = 0;
    const Values got = x.values();
    for (Index i = 0; i < count; ++i)
      for (Index j = 0; j < width; ++j) {
        kept += got(i, j) != 0;
        if (j > 0) pairs += got(i, j) != 0 && got(i, j - 1) != 0;
        wrong += got(i, j) != 0 && std::abs(got(i, j) * (1 - probability) - 1) > 1e-6;
      }
    CHECK(wrong == 0);
    const double n = count * width;
    const double p = 1 - probability;
    CHECK(std::abs(kept - n * p) < 4 * std::sqrt(n * p * (1 - p)));
    const double m = count * (width - 1);  // neighbours are independent
    CHECK(std::abs(pairs - m * p * p) < 8 * std::sqrt(m * p * p * (1 - p * p)));
  }
}
TEST_CASE_TEMPLATE_APPLY(dropout_rate, Backends);

TEST_CASE_TEMPLATE_DEFINE("the arena gives memory in stack order, aligned, and keeps it", B, arena_order) {
  using T = typename B::Scalar;
  typename B::Arena arena;
  std::vector<std::pair<T*, Index>> taken;
  for (Index size : {1, 0, 17, 1000, 3, 100000, 64}) {
    const MatrixView<T> matrix = arena.matrix(size, 3);
    CHECK(matrix.rows == size);
    CHECK(matrix.stride == 3);
    CHECK(reinterpret_cast<std::uintptr_t>(matrix.data) % 64 == 0);
    for (Index i = 0; i < size; ++i) std::fill_n(matrix.row(i), 3, static_cast<T>(taken.size()));
    taken.emplace_back(matrix.data, 3 * size);
  }
  for (std::size_t t = 0; t < taken.size(); ++t)  // nobody wrote into anybody else's
    CHECK(std::count(taken[t].first, taken[t].first + taken[t].second, static_cast<T>(t)) == taken[t].second);
  T* inner = nullptr;
  {
    const auto scope = arena.scope();
    inner = arena.take(10);
    arena.take(1 << 20);  // needs another block
  }
  CHECK(arena.take(10) == inner);
  arena.reset();
  const Index capacity = arena.capacity();
  for (int step = 0; step < 3; ++step) {  // the steady state allocates nothing
    arena.reset();
    T* first = arena.take(5);
    arena.take(capacity / 2);
    CHECK(arena.capacity() == capacity);
    arena.reset();
    CHECK(arena.take(5) == first);
  }
}
TEST_CASE_TEMPLATE_APPLY(arena_order, Backends);

}  // namespace fedlora::tests
