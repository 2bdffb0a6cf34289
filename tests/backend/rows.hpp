// SPDX-License-Identifier: Apache-2.0
// What every backend does with rows: embedding, gathering, pooling, losses, dropout by address; and what goes between
// its memory and the host's.
#pragma once

#include "backend/conformance.hpp"

namespace fedlora::tests {

TEST_CASE_TEMPLATE_DEFINE("embedding adds the rows of its tables", B, embedding) {
  using T = typename B::Element;
  Worker<B> run;
  const std::vector<std::int32_t> word_ids = {6, 0, 0, 3}, place_ids = {0, 1, 2, 4}, type_ids = {1, 0, 1, 0};
  const std::vector<const std::int32_t*> ids = {run.place(word_ids), run.place(place_ids), run.place(type_ids)};
  run.flush();
  in_every_layout<B>([&] {
    for (const Index width : {1, 15, 33}) {
      const Values words = random_for<B>(7, width, 1), places = random_for<B>(5, width, 2),
                   types = random_for<B>(2, width, 3);
      const Guarded<T> w(words), p(places), t(types);
      const std::vector<MatrixView<const T>> tables = {w.in(), p.in(), t.in()};
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
        run.embed(std::span(tables).first(used), std::span(ids).first(used), y.view());
        check_close(y, expected, tolerance<B>, "embedding");
      }
    }
  });
}

TEST_CASE_TEMPLATE_DEFINE("rows are gathered, scattered, copied, added and cleared", B, rows) {
  using T = typename B::Element;
  Worker<B> run;
  const std::vector<std::int32_t> where = {5, 0, 5}, apart = {5, 0, 3};
  const std::int32_t* const from = run.place(where);
  const std::int32_t* const to = on_device<B> ? run.place(apart) : from;  // a GPU adds to a row once
  run.flush();
  in_every_layout<B>([&] {
    const Values x = random_for<B>(6, 17, 1), part = random_for<B>(3, 17, 2);
    const Guarded<T> x_in(x), part_in(part);
    Guarded<T> gathered(3, 17), scattered(x), copied(6, 17), added(x), cleared(6, 17);
    run.gather_rows(x_in.in(), from, gathered.view());
    run.scatter_rows_add(part_in.in(), to, scattered.view());
    run.copy(x_in.in(), copied.view());
    run.add(x_in.in(), added.view());
    run.fill_zero(cleared.view());
    Values taken(3, 17), put = x;
    for (std::size_t i = 0; i < 3; ++i)
      for (Index j = 0; j < 17; ++j) {
        taken(static_cast<Index>(i), j) = x(where[i], j);
        put((on_device<B> ? apart : where)[i], j) += part(static_cast<Index>(i), j);
      }
    check_close(gathered, taken, 0, "gathered");
    check_close(scattered, put, tolerance<B>, "scattered");
    check_close(copied, x, 0, "copied");
    check_close(added, sum_of(x, x), 0, "added");
    check_close(cleared, Values(6, 17), 0, "cleared");
  });
}

TEST_CASE_TEMPLATE_DEFINE("parameters go to the operations, gradients and results come back", B, transfers) {
  using T = typename B::Element;
  using S = typename B::Scalar;
  Worker<B> run;
  in_every_layout<B>([&] {
    const Values values = random_values(1, 5 * 7, 1), gradient0 = random_values(1, 5 * 7, 2);
    std::vector<S> given(values.data.begin(), values.data.end());
    std::vector<S> gradient(gradient0.data.begin(), gradient0.data.end());
    const std::span<const T> parameters = run.parameters(given);
    REQUIRE(parameters.size() == given.size());
    const MatrixView<const T> matrix(parameters.data(), 5, 7);
    std::vector<S> back(given.size());
    run.download(matrix, back.data());
    const Values expected = rounded<B>(values);
    CHECK(std::vector<double>(back.begin(), back.end()) == expected.data);

    Guarded<T> copied(5, 7);
    run.copy(matrix, copied.view());
    CHECK(copied.values().data == expected.data);
    run.download(copied.in(), back.data());  // rows with gaps between them
    CHECK(std::vector<double>(back.begin(), back.end()) == expected.data);

    // The gradient of a trainable layer, with the loss scale in dy, as a pass over a model makes it.
    const Values x = random_for<B>(4, 7, 3), dy = random_for<B>(4, 5, 4);
    Values scaled = dy, sums = gradient0;
    for (double& value : scaled.data) value *= loss_scale<B>;
    for (Index k = 0; k < 4; ++k)
      for (Index i = 0; i < 5; ++i)
        for (Index j = 0; j < 7; ++j) sums(0, i * 7 + j) += dy(k, i) * x(k, j);
    const Guarded<T> x_in(x), dy_in(scaled);
    const std::span<S> opened = run.open_gradient(gradient);
    REQUIRE(opened.size() == gradient.size());
    run.dense_backward(dy_in.in(), x_in.in(), matrix, MatrixView<S>(opened.data(), 5, 7), nullptr, MatrixView<T>{});
    run.close_gradient(gradient);
    Values got(1, 5 * 7);
    got.data.assign(gradient.begin(), gradient.end());
    CHECK(error_of(got, sums) <= (rounds_operands<B> ? product_tolerance<B> : sum_tolerance<B>));
  });
}

TEST_CASE_TEMPLATE_DEFINE("mean pooling, forward and backward", B, pooling) {
  using T = typename B::Element;
  Worker<B> run;
  const std::vector<std::int32_t> cu = {0, 1, 6, 8};
  const std::int32_t* const placed = run.place(cu);
  run.flush();
  in_every_layout<B>([&] {
    const Values x = random_for<B>(8, 31, 1), dy = random_for<B>(3, 31, 2);
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
    run.mean_rows(x_in.in(), placed, y.view());
    run.mean_rows_backward(dy_in.in(), placed, dx.view());
    check_close(y, mean, tolerance<B>, "mean");
    check_close(dx, back, tolerance<B>, "gradient");
  });
}

TEST_CASE_TEMPLATE_DEFINE("cross-entropy, its gradient, and rows without a label", B, loss) {
  using T = typename B::Element;
  Worker<B> run;
  in_every_layout<B>([&] {
    for (const Index classes : sizes<Index>({1, 2, 3, 16, 33, 257}))
      for (const double size : {1.0, 300.0}) {
        CAPTURE(classes);
        run.reset();
        const Values logits = random_for<B>(5, classes, 1, size);
        std::vector<std::int32_t> labels(5);
        for (std::size_t i = 0; i < 5; ++i)
          labels[i] = static_cast<std::int32_t>((7 * i + 2) % static_cast<std::size_t>(classes));
        labels[3] = -1;
        const std::int32_t* const placed = run.place(labels);
        run.flush();
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
            gradient(i, j) = loss_scale<B> * weight * (std::exp(logits(i, j) - top) / sum - (j == label ? 1.0 : 0.0));
        }
        Guarded<T> in_place(logits);
        const Guarded<T> untouched(logits);
        const double bound = std::is_same_v<T, double> ? 1e-12 : 1e-5;
        std::vector<RowLoss> losses(5);
        run.row_losses(untouched.in(), placed, losses);
        double sum = 0;
        for (Index i = 0; i < 5; ++i) {
          const RowLoss& loss = losses[static_cast<std::size_t>(i)];
          sum += loss.nll;
          for (Index j = 0; j < classes; ++j)
            CHECK((j < loss.best ? logits(i, j) < logits(i, loss.best) : logits(i, j) <= logits(i, loss.best)));
        }
        CHECK(std::abs(sum - expected) <= bound * (1 + expected));
        CHECK(untouched.values().data == Guarded<T>(logits).values().data);
        run.cross_entropy(in_place.view(), placed, weight);
        CHECK(std::abs(run.take_loss() - expected) <= bound * (1 + expected));
        CHECK(run.take_loss() == 0);
        check_close(in_place, gradient, classes == 1 ? 1e-30 : 2 * tolerance<B>, "gradient");
      }
  });
}

TEST_CASE_TEMPLATE_DEFINE("mean squared error and binary cross-entropy, and their gradients", B, target_losses) {
  using T = typename B::Element;
  using S = typename B::Scalar;
  Worker<B> run;
  in_every_layout<B>([&] {
    for (const Index columns : sizes<Index>({1, 2, 3, 16, 33, 70}))
      for (const double size : {1.0, 1000.0}) {
        CAPTURE(columns);
        CAPTURE(size);
        run.reset();
        const Values outputs = random_for<B>(6, columns, 1, size), numbers = random_values(6, columns, 2);
        std::vector<S> targets(numbers.data.begin(), numbers.data.end()), flags(targets);
        for (S& flag : flags) flag = flag > S(0) ? S(1) : S(0);
        const S* const placed_targets = run.place(std::span<const S>(targets));
        const S* const placed_flags = run.place(std::span<const S>(flags));
        run.flush();
        const double weight = 0.375, share = weight / static_cast<double>(columns);
        double squares = 0, entropies = 0;
        Values square_slopes(6, columns), entropy_slopes(6, columns);
        for (Index i = 0; i < 6; ++i)
          for (Index j = 0; j < columns; ++j) {
            const auto at = static_cast<std::size_t>(i * columns + j);
            const double error = outputs(i, j) - static_cast<double>(targets[at]);
            squares += error * error / static_cast<double>(columns);
            square_slopes(i, j) = loss_scale<B> * share * 2 * error;
            const double towards = flags[at] > S(0) ? outputs(i, j) : -outputs(i, j);  // -log σ(towards)
            entropies += (towards > 0 ? std::log1p(std::exp(-towards)) : std::log1p(std::exp(towards)) - towards) /
                         static_cast<double>(columns);
            entropy_slopes(i, j) =
                loss_scale<B> * share * (1 / (1 + std::exp(-outputs(i, j))) - static_cast<double>(flags[at]));
          }
        const double bound = std::is_same_v<T, double> ? 1e-12 : 1e-5;
        Guarded<T> regression(outputs), labels(outputs);
        run.mean_squared_error(regression.view(), placed_targets, weight);
        CHECK(std::abs(run.take_loss() - squares) <= bound * (1 + squares));
        run.binary_cross_entropy(labels.view(), placed_flags, weight);
        CHECK(std::abs(run.take_loss() - entropies) <= bound * (1 + entropies));
        CHECK(run.take_loss() == 0);
        check_close(labels, entropy_slopes, 2 * tolerance<B>, "gradient of binary cross-entropy");
        if (size < 1000 || !std::is_same_v<T, Half>)  // its loss scale has no room for these
          check_close(regression, square_slopes, 2 * tolerance<B>, "gradient of mean squared error");
      }
  });
}

TEST_CASE_TEMPLATE_DEFINE("dropout's mask is the documented one, element by element", B, dropout_mask) {
  using T = typename B::Element;
  Worker<B> run;
  const std::vector<std::int32_t> numbers = {0, 3, 2, 100000, 2};
  const std::int32_t* const placed = run.place(numbers);
  run.flush();
  in_every_layout<B>([&] {
    for (const Index width : sizes<Index>({1, 2, 3, 4, 5, 15, 61, 63, 64, 65, 127, 128, 130, 300}))
      for (const double probability : {0.1, 0.5, 0.9}) {
        CAPTURE(width);
        const Dropout dropout(derive_key(9, Purpose::user, width), probability);
        const Values x = random_for<B>(5, width, 1);
        Values expected(5, width);
        for (Index i = 1; i < 5; ++i)
          for (Index j = 0; j < width; ++j)
            expected(i, j) = mask_of(dropout, numbers[static_cast<std::size_t>(i)], j) * x(i, j);
        const Guarded<T> x_in(x);
        Guarded<T> y(5, width), in_place(x);
        run.dropout(dropout, x_in.in(), y.view(), placed, 1, 5);
        run.dropout(dropout, in_place.in(), in_place.view(), placed, 1, 5);
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
  });
}

TEST_CASE_TEMPLATE_DEFINE("dropout keeps the share it should, and scales what it keeps", B, dropout_rate) {
  using T = typename B::Element;
  Worker<B> run;
  constexpr Index count = slow_device ? 80 : 400, width = 250;
  std::vector<std::int32_t> numbers(count);
  for (Index i = 0; i < count; ++i) numbers[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
  const std::int32_t* const placed = run.place(numbers);
  run.flush();
  Values ones(count, width);
  for (double& one : ones.data) one = 1;
  for (const double probability : {0.05, 0.1, 0.5, 0.8}) {
    CAPTURE(probability);
    Guarded<T> x(ones);
    run.dropout(Dropout(derive_key(10, Purpose::user), probability), x.in(), x.view(), placed, 0, count);
    double kept = 0, pairs = 0, wrong = 0;
    const Values got = x.values();
    for (Index i = 0; i < count; ++i)
      for (Index j = 0; j < width; ++j) {
        kept += got(i, j) != 0;
        if (j > 0) pairs += got(i, j) != 0 && got(i, j - 1) != 0;
        wrong += got(i, j) != 0 && std::abs(got(i, j) * (1 - probability) - 1) > (sizeof(T) == 2 ? tolerance<B> : 1e-6);
      }
    CHECK(wrong == 0);
    const double n = count * width;
    const double p = 1 - probability;
    CHECK(std::abs(kept - n * p) < 4 * std::sqrt(n * p * (1 - p)));
    const double m = count * (width - 1);  // neighbours are independent
    CHECK(std::abs(pairs - m * p * p) < 8 * std::sqrt(m * p * p * (1 - p * p)));
  }
}

}  // namespace fedlora::tests
