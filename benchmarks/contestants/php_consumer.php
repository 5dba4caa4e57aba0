<?php
/* What Magento's consumer and the module do, statement by statement, one message at a time.
 *
 * Magento: select the oldest pending message, set it IN_PROGRESS, look up and insert its queue_lock row, call the
 * handler, set it COMPLETE. The module: decode, build the order request, a fresh curl handle, POST.
 * It leaves out what costs Magento most, the framework's own start and object graph: this is PHP at its best.
 * At an empty queue it waits a second between two looks, as Magento's consumers do.
 * Arguments: socket, database, user, password, base URL, token, messages, queue.
 */
declare(strict_types=1);

[, $socket, $database, $user, $password, $base_url, $token, $messages, $queue] = $argv;

$pdo = new PDO("mysql:unix_socket=$socket;dbname=$database;charset=utf8mb4", $user, $password, [
    PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION,
    PDO::ATTR_EMULATE_PREPARES => true,
]);
$pdo->exec("SET time_zone = '+00:00'");

function cpu_seconds(): float
{
    $usage = getrusage();
    return $usage['ru_utime.tv_sec'] + $usage['ru_stime.tv_sec']
        + ($usage['ru_utime.tv_usec'] + $usage['ru_stime.tv_usec']) / 1e6;
}

function run(PDO $pdo, string $statement, array $parameters): PDOStatement
{
    $prepared = $pdo->prepare($statement);
    $prepared->execute($parameters);
    return $prepared;
}

function amount(array $row, string $name): float
{
    return is_numeric($row[$name] ?? null) ? (float) $row[$name] : 0.0;
}

function international(string $number): string
{
    $digits = preg_replace('/[^0-9]/', '', $number);
    return $digits === '' || strncmp($digits, '91', 2) === 0 ? $digits : "91$digits";
}

function address(array $row): array|stdClass
{
    if (!$row) {
        return new stdClass();
    }
    return ['address1' => $row['street'] ?? '', 'city' => $row['city'] ?? '', 'province' => $row['region'] ?? '',
        'zip' => $row['postcode'] ?? '', 'country' => $row['country_id'] ?? '', 'phone' => $row['telephone'] ?? ''];
}

function zithara_status(array $order, string $name): string
{
    $value = strtolower((string) ($order[$name] ?? ''));
    return ['complete' => 'completed', 'canceled' => 'cancelled'][$value] ?? $value;
}

function order_part(array $event, string $id): array
{
    $order = $event['order'];
    $state = zithara_status($order, 'state');
    return ['status' => $state, 'fulfillment_status' => $state, 'current_subtotal_price' => amount($order, 'subtotal'),
        'billing_address' => address($event['billing_address'] ?? []),
        'shipping_address' => address($event['shipping_address'] ?? []),
        'payment_status' => amount($event['payment'] ?? [], 'amount_paid') > 0 ? 'paid' : '',
        'currency' => $order['currency_code'] ?? 'INR', 'platform_order_id' => $id, 'name' => $id,
        'current_total_tax' => amount($order, 'tax_amount'), 'created_at' => $order['created_at'] ?? '',
        'custom_attributes' => ['cashback_amount' => 0.0, 'cashback_redeemption_order' => false, 'pos_reference' => $id,
            'card_order' => false, 'cashback_redeemption_amount' => 0.0, 'card_no' => false],
        'note' => false, 'current_total_discounts' => amount($order, 'discount_amount'),
        'current_total_price' => amount($order, 'grand_total')];
}

/** @return array{string, array} method and body */
function transformed(array $event): array
{
    $order = $event['order'];
    $id = (string) $order['increment_id'];
    if (!empty($event['is_update'])) {
        return ['PATCH', order_part($event, $id)];
    }
    $phone = international((string) ($event['billing_address']['telephone'] ?? ''));
    $lines = [];
    foreach ($event['items'] ?? [] as $item) {
        if (empty($item['item_id'])) {
            continue;
        }
        $lines[] = ['status' => '', 'platform_line_item_id' => (string) $item['item_id'],
            'price' => amount($item, 'price'), 'taxable' => amount($item, 'tax_amount') > 0,
            'discount_amount' => amount($item, 'discount_amount'), 'sku' => $item['sku'] ?? '',
            'product_id' => $item['product_id'] ?? '', 'gift_card' => false, 'custom_attributes' => new stdClass(),
            'product_name' => $item['name'] ?? '', 'quantity' => amount($item, 'qty_ordered')];
    }
    $payment = $event['payment'] ?? [];
    $total = amount($order, 'grand_total');
    $first = $order['customer_firstname'] ?? '';
    $last = $order['customer_lastname'] ?? '';
    return ['POST', [
        'customer' => ['platform_customer_id' => (string) ($order['customer_id'] ?? ''), 'phone_number' => $phone,
            'first_name' => $first, 'last_name' => $last, 'name' => trim("$first $last"),
            'whatsapp_phone_number' => $phone, 'email' => $order['customer_email'] ?? false,
            'custom_attributes' => new stdClass()],
        'order_line_item' => $lines,
        'order' => order_part($event, $id),
        'transactions' => [['status' => zithara_status($order, 'status'),
            'transaction_final_amount' => amount($payment, 'amount_paid') ?: $total,
            'transaction_original_amount' => amount($payment, 'amount_authorized') ?: $total,
            'transaction_mode' => $payment['method'] ?? 'Unknown', 'created_at' => $order['created_at'] ?? '',
            'platform_transaction_id' => $payment['last_trans_id'] ?? $id, 'financial_status' => '',
            'transaction_type' => '', 'custom_attributes' => new stdClass()]],
    ]];
}

function send(string $method, string $url, string $body, string $token): void
{
    $curl = curl_init($url);
    curl_setopt_array($curl, [
        CURLOPT_CUSTOMREQUEST => $method, CURLOPT_POSTFIELDS => $body, CURLOPT_RETURNTRANSFER => true,
        CURLOPT_TIMEOUT => 30, CURLOPT_SSL_VERIFYPEER => false, CURLOPT_SSL_VERIFYHOST => 0,
        // No question '100-continue?' before a larger body: it would cost PHP another round trip.
        CURLOPT_HTTPHEADER => ['Content-Type: application/json', 'Accept: application/json', "Authorization: $token",
            'Expect:'],
    ]);
    $answer = curl_exec($curl);
    $status = curl_getinfo($curl, CURLINFO_RESPONSE_CODE);
    if ($answer === false || $status >= 300) {
        throw new RuntimeException("$method $url: HTTP $status " . curl_error($curl));
    }
    json_decode($answer, true, 512, JSON_THROW_ON_ERROR);
    curl_close($curl);
}

echo json_encode(['ready' => cpu_seconds()]), "\n";
for ($done = 0; $done < (int) $messages;) {
    $row = run($pdo, 'SELECT queue_message_status.id, queue_message_status.message_id, queue_message.topic_name, '
        . 'queue_message.body, queue_message_status.number_of_trials FROM queue_message INNER JOIN '
        . 'queue_message_status ON queue_message.id = queue_message_status.message_id INNER JOIN queue ON queue.id = '
        . 'queue_message_status.queue_id WHERE queue_message_status.status IN (2, 5) AND queue.name = ? '
        . 'ORDER BY queue_message_status.updated_at ASC, queue_message_status.id ASC LIMIT 1',
        [$queue])->fetch(PDO::FETCH_ASSOC);
    if (!$row) {
        sleep(1);
        continue;
    }
    run($pdo, 'UPDATE queue_message_status SET status = 3 WHERE id = ?', [$row['id']]);
    $code = md5("ZitharaOrderConsumer-{$row['message_id']}");
    run($pdo, 'SELECT id FROM queue_lock WHERE message_code = ?', [$code])->fetch();
    run($pdo, 'INSERT INTO queue_lock (message_code) VALUES (?)', [$code]);
    $event = json_decode(json_decode($row['body']), true, 512, JSON_THROW_ON_ERROR);
    [$method, $request] = transformed($event);
    send($method, "$base_url/order", json_encode($request), $token);
    run($pdo, 'UPDATE queue_message_status SET status = 4 WHERE id = ?', [$row['id']]);
    $done++;
}
